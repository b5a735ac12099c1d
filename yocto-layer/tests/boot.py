"""The card that wic makes, with U-Boot and the boot script as their real recipes make them, started in QEMU's `raspi4b`.

Each start is cut off when the kernel has its command line, as a power cut would, so every start counts against its slot. In the
kernel's place is a program that says that line (standins/kernel): Yocto's kernel cannot be had here. The firmware's device tree comes
from a Debian card of ours (`image/build raspberrypi4 test`).
"""
import os
import pathlib
import re
import select
import subprocess
import time

import wic
from tally import check

START_S = 600
MIB = 1 << 20


def run(*words, **more):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, errors="replace", check=True, **more).stdout


def parts_of_card(main, card, at):
    """Device tree and kernel's line of a card of ours, the device tree that QEMU's board can have, and what takes the kernel's place."""
    boot = f"{card}@@1M"
    run("mcopy", "-n", "-o", "-i", boot, "::bcm2711-rpi-4-b.dtb", at / "card.dtb")
    run(main / "image/quick/boards/raspberrypi/qemu-tree", at / "card.dtb", at / "armed.dtb")
    (at / "tree.dtb").write_bytes((at / "armed.dtb").read_bytes())
    run("fdtput", "-t", "s", at / "tree.dtb", "/soc/watchdog@7e100000", "status", "disabled")
    source = pathlib.Path(__file__).with_name("standins") / "kernel"
    run("aarch64-linux-gnu-gcc", "-Os", "-ffreestanding", "-nostdlib", "-static", "-fpie", "-mstrict-align", "-mgeneral-regs-only", "-fno-stack-protector",
        "-Wl,--build-id=none", f"-Wl,-T,{source}/kernel.ld", "-o", at / "kernel.elf", source / "kernel.c")
    run("aarch64-linux-gnu-objcopy", "-O", "binary", at / "kernel.elf", at / "Image")
    return run("mtype", "-i", boot, "::cmdline.txt").strip()


class Board:
    def __init__(self, main, at, u_boot, line):
        self.at, self.card = at, at / "rpi.img"
        self.words = [str(main / "image/quick/qemu-raspi"), "-M", "raspi4b", "-m", "2G", "-kernel", str(u_boot), "-append", line,
                      "-drive", f"if=sd,format=raw,file={self.card}", "-display", "none", "-monitor", "none",
                      "-serial", "null", "-serial", "stdio"]

    def start(self, until, tree="tree.dtb"):
        """Runs the board until its console says `until`; what it said, and the seconds."""
        began, said = time.monotonic(), ""
        qemu = subprocess.Popen([*self.words, "-dtb", str(self.at / tree)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with (self.at / "console.log").open("a") as log, qemu:
            while time.monotonic() - began < START_S and not re.search(until, said):
                if select.select([qemu.stdout], [], [], 1)[0]:
                    got = os.read(qemu.stdout.fileno(), 65536)
                    if not got:
                        break
                    said += got.decode(errors="replace")
                    log.write(got.decode(errors="replace"))
                    log.flush()
            qemu.kill()
        return said, time.monotonic() - began

    def environment(self, config, tool, *words):
        """U-Boot's variables on the card, by the configuration that the device has."""
        start = next(start for name, start, *_ in wic.partitions(self.card) if name == "uboot-env")
        lines = [f"{self.card} {start + int(offset, 16):#x} {size}" for offset, size in
                 re.findall(r"^/dev/\S+ (0x\w+) (0x\w+)$", config.read_text(), re.M)]
        (self.at / "fw_env.config").write_text("\n".join(lines) + "\n")
        return run(tool, "-c", self.at / "fw_env.config", *words)


def play(main, work, deploy, config, card):
    """Power on, seven times; what RAUC writes before a new system's first start; a watchdog that is armed."""
    at = work / "board"
    (at / "extra").mkdir(parents=True, exist_ok=True)
    line = parts_of_card(main, card, at)
    layer = work / "kentledge/yocto-layer"
    # What wic takes from the deploy folder, and the kernel in the slot.
    extra = {"deploy/u-boot.bin": deploy / "u-boot.bin", "deploy/boot.scr": deploy / "boot.scr", "deploy/bcm2711-rpi-4-b.dtb": at / "card.dtb",
             "rootfs/boot/Image": at / "Image"}
    for name, source in extra.items():
        (at / "extra" / name).parent.mkdir(parents=True, exist_ok=True)
        (at / "extra" / name).write_bytes(source.read_bytes())
    wic.stand_ins(at, work / "layers/openembedded-core", at / "extra")
    image, problems = wic.create(work / "wic", work / "layers/bitbake", layer, at, "rpi", "bootfiles/* bcm2711-rpi-4-b.dtb u-boot.bin boot.scr")
    if problems:
        check("wic makes the card that is started", problems)
        return
    places = {name: (start, size) for name, start, size, *_ in wic.partitions(image)}
    for left in at.glob("rpi.*"):
        if left.suffix != ".img":
            left.unlink()
    # An update has written the same system into slot B. QEMU wants a power of two.
    with image.open("r+b") as file:
        file.seek(places["rootfs-a"][0])
        system = file.read(places["rootfs-a"][1])
        file.seek(places["rootfs-b"][0])
        file.write(system)
        file.truncate(2048 * MIB)
    board = Board(main, at, deploy / "u-boot.bin", line)
    (at / "console.log").unlink(missing_ok=True)
    chosen, problems, copies, seconds = [], [], set(), []
    until = r"Kernel command line: [^\n]*\n|neither slot starts|did not start"
    for n in range(7):
        said, took = board.start(until)
        seconds.append(took)
        slot = re.search(r"KENTLEDGE: starting slot (\w)", said)
        kernel = re.search(r"Kernel command line: ([^\n]*)", said)
        chosen.append(slot[1] if slot else "?")
        if slot and not kernel or kernel and f"rauc.slot={chosen[-1]} " not in kernel[1] + " ":
            problems.append(f"start {n + 1}, slot {chosen[-1]}: {said[-200:]!r}")
        words = (f"root=PARTLABEL=rootfs-{chosen[-1].lower()} ", "init=/usr/lib/kentledge/preinit")
        if kernel and not all(word in kernel[1] for word in words):
            problems.append(f"start {n + 1}: the kernel's line names {kernel[1]}")
        copies.add(written(image, places["uboot-env"][0]))
        print(f"    start {n + 1}: slot {chosen[-1]}, {took:.0f} s, " + ("the kernel is started" if kernel else "no kernel"), flush=True)
    # Three starts each; then both are spent, and each gets its starts once more.
    if chosen != list("AAABBBA"):
        problems.append(f"the slots were {''.join(chosen)}, not AAABBBA")
    if len(copies) != 2:
        problems.append(f"U-Boot wrote {len(copies)} of the two copies of its environment")
    check("U-Boot of the real recipe counts the starts of slots A and B on the card of the real wic", problems)
    # What RAUC does after an installation into B, and what mark-good does.
    board.environment(config, "fw_setenv", "BOOT_ORDER", "B A")
    board.environment(config, "fw_setenv", "BOOT_B_LEFT", "3")
    said, _ = board.start(until)
    left = board.environment(config, "fw_printenv", "-n", "BOOT_B_LEFT").strip()
    check("U-Boot takes the slot that Linux put first, by the device's own fw_env.config",
          [] if "starting slot B" in said and left == "2" else [f"BOOT_B_LEFT={left}: {said[-300:]!r}"])
    # QEMU's watchdog resets at once when it is armed. Seven starts above, with the node off, had no reset.
    said, _ = board.start(r"(?s)Core: .*Core: .*Core: ", tree="armed.dtb")
    check("U-Boot arms the board's watchdog before it looks for a boot script",
          [] if said.count("Core: ") > 2 and "Loading Environment" not in said else [said[-400:]])


def written(image, start):
    """Which copy of the environment is the newer: the flag after the checksum counts up."""
    flags = []
    with image.open("rb") as file:
        for offset in (0, 0x80000):
            file.seek(start + offset + 4)
            flags.append(file.read(1)[0])
    return 0 if (flags[0] - flags[1]) % 256 < 128 and flags[0] != flags[1] else 1
