#!/usr/bin/env python3
"""The real wic over both wks files; the cards that it makes are taken apart and compared with the layout (tests/oe calls this).

    wic.py LAYER WIC BITBAKE WORK      WIC: a folder with scripts/wic as oe-core had it until April 2026

The root and the boot files are small stand-ins; partitions, names, file systems and /etc/fstab are what is looked at. Cards are
left in WORK/rpi.img and WORK/qemu.img. Needs sfdisk, mkfs.vfat, mcopy, mkfs.ext4, debugfs, blkid.
"""
import os
import pathlib
import re
import subprocess
import sys

import tally
from tally import check

MIB = 1 << 20


def run(*words, **more):
    return subprocess.run(words, capture_output=True, text=True, errors="replace", **more)


def layout(layer):
    text = (layer / "conf/include/kentledge-layout.inc").read_text()
    return dict(re.findall(r'^KENTLEDGE_(\w+) = "([^"]*)"$', text, re.M))


def stand_ins(at, core, extra):
    """A root and what a BSP deploys: names as meta-raspberrypi has them, content of no meaning. `extra`: real files over them."""
    for folder in ("native/usr", "native/sbin", "rootfs/etc", "rootfs/boot", "rootfs/data", "deploy/bootfiles", "vars"):
        (at / folder).mkdir(parents=True, exist_ok=True)
    # wic takes its tools from a sysroot only: here this machine's own.
    for folder in ("usr/bin", "usr/sbin", "bin"):
        if not (at / "native" / folder).is_symlink():
            (at / "native" / folder).symlink_to(f"/{folder}")
    # Debian 12's sfdisk does not know this option; 512 is what it takes anyway.
    sfdisk = at / "native/sbin/sfdisk"
    sfdisk.write_text('#!/bin/sh\n[ "$1 $2" != "--sector-size 512" ] || shift 2\nexec /sbin/sfdisk "$@"\n')
    sfdisk.chmod(0o755)
    (at / "rootfs/etc/fstab").write_text((core / "meta/recipes-core/base-files/base-files/fstab").read_text())
    (at / "rootfs/boot/Image").write_bytes(os.urandom(26 * MIB))
    (at / "deploy/bootfiles/start4.elf").write_bytes(os.urandom(23 * MIB))
    for name, text in {"bootfiles/config.txt": "enable_uart=1\n", "boot.scr": "script", "bcm2711-rpi-4-b.dtb": "tree", "u-boot.bin": "U-Boot"}.items():
        (at / "deploy" / name).write_text(text)
    if extra:
        subprocess.run(["cp", "-r", f"{extra}/.", at], check=True)


def create(wic, bitbake, layer, at, which, boot_files):
    """Runs wic; the image, or what it complained of."""
    words = layout(layer)
    text = (layer / f"files/wic/kentledge-ab-{which}.wks.in").read_text()
    wks = at / f"kentledge-ab-{which}.wks"
    wks.write_text(re.sub(r"\$\{KENTLEDGE_(\w+)\}", lambda m: words[m[1]], text))
    (at / "vars/kentledge-image.env").write_text(
        f'IMAGE_ROOTFS="{at}/rootfs"\nDEPLOY_DIR_IMAGE="{at}/deploy"\nROOTFS_SIZE="131072"\nIMAGE_BASENAME="kentledge-image"\n'
        f'RECIPE_SYSROOT_NATIVE="{at}/native"\nTARGET_SYS="aarch64-oe-linux"\nIMAGE_BOOT_FILES="{boot_files}"\n')
    env = {**os.environ, "PYTHONPATH": f"{bitbake}/lib:{bitbake.parent}/openembedded-core/meta/lib", "BUILDDIR": str(at), "PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    made = run(sys.executable, str(wic / "scripts/wic"), "create", str(wks), "--vars", f"{at}/vars/", "-e", "kentledge-image", "-o", f"{at}/out-{which}/",
               "-w", f"{at}/tmp-{which}", env=env, cwd=at)
    images = sorted((at / f"out-{which}").glob("*.direct"))
    if made.returncode or not images:
        return None, [(made.stdout + made.stderr)[-800:]]
    target = at / f"{which}.img"
    images[-1].rename(target)
    return target, []


def partitions(image):
    """Name, start and size in bytes, and the file system's type and label of each partition."""
    found = []
    for line in run("sfdisk", "-d", str(image)).stdout.splitlines():
        if match := re.search(r"start=\s*(\d+), size=\s*(\d+),.*name=\"([^\"]+)\"", line):
            start, size = int(match[1]) * 512, int(match[2]) * 512
            part = image.with_suffix(f".{match[3]}")
            subprocess.run(["dd", f"if={image}", f"of={part}", "bs=1M", "iflag=skip_bytes,count_bytes", f"skip={start}", f"count={size}", "status=none",
                            "conv=sparse"], check=True)
            seen = dict(line.split("=", 1) for line in run("blkid", "-p", "-o", "export", str(part)).stdout.splitlines() if "=" in line)
            found.append((match[3], start, size, seen.get("TYPE"), seen.get("LABEL"), part))
    return found


def compare(layer, which, image, boot_files):
    words = layout(layer)
    label, size = lambda name: words["LABEL_" + name], lambda name: int(words[name + "_MIB"]) * MIB
    wanted = [(label("BOOT"), size("BOOT"), "vfat"), (label("ENV"), size("ENV"), None), (label("A"), size("SLOT"), "ext4"),
              (label("B"), size("SLOT"), None), (label("DATA"), size("DATA"), "ext4")]
    found = partitions(image)
    problems = []
    if [(n, s, t) for n, _, s, t, _, _ in found] != wanted:
        problems.append(f"partitions are {[(n, s // MIB, t) for n, _, s, t, _, _ in found]}, not {[(n, s // MIB, t) for n, s, t in wanted]}")
    parts = {name: (start, part) for name, start, _, _, _, part in found}
    if which == "rpi" and label("ENV") in parts:
        config = (layer / "dynamic-layers/raspberrypi/recipes-bsp/u-boot/files/kentledge.cfg").read_text()
        offset = int(re.search(r"^CONFIG_ENV_OFFSET=(\w+)", config, re.M)[1], 16)
        if parts[label("ENV")][0] != offset:
            problems.append(f"the environment is at {parts[label('ENV')][0]:#x}, and U-Boot looks at {offset:#x}")
    if label("A") in parts:
        lines = run("debugfs", "-R", "cat /etc/fstab", str(parts[label("A")][1])).stdout.splitlines()
        problems += [f"fstab mounts {line}" for line in lines if re.search(r"\s/(boot|data)\s", line) and not line.startswith("#")]
        if "Image" not in run("debugfs", "-R", "ls /boot", str(parts[label("A")][1])).stdout:
            problems.append("slot A has no kernel")
    if label("BOOT") in parts:
        names = run("mdir", "-b", "-i", str(parts[label("BOOT")][1]), "::").stdout.split()
        problems += [f"the boot partition has no {name}" for name in boot_files if f"::/{name}" not in names]
    for name in (label("A"), label("DATA")):
        if name in parts and (checked := run("e2fsck", "-fn", str(parts[name][1]))).returncode:
            problems.append(f"{name}: {checked.stdout[-300:]}")
    check(f"wic: the card of {which} is as the layout says", problems)
    for name, start, length, kind, _, part in found:
        print(f"    {name}: at {start / MIB:g} MiB, {length / MIB:g} MiB, {kind or 'no file system'}", flush=True)
        part.unlink()


def main():
    layer, wic, bitbake, work = (pathlib.Path(word).resolve() for word in sys.argv[1:5])
    stand_ins(work, bitbake.parent / "openembedded-core", sys.argv[5] if len(sys.argv) > 5 else None)
    for which, files, wanted in (("rpi", "bootfiles/* bcm2711-rpi-4-b.dtb u-boot.bin;kernel8.img boot.scr", ["config.txt", "kernel8.img", "boot.scr", "start4.elf"]),
                                 ("qemu", "boot.scr", ["boot.scr"])):
        image, problems = create(wic, bitbake, layer, work, which, files)
        if problems:
            check(f"wic makes the card of {which}", problems)
        else:
            compare(layer, which, image, wanted)
    sys.exit(tally.end())


if __name__ == "__main__":
    main()
