#!/usr/bin/env python3
"""Static checks of the layer: what can be known without the upstream layers.

    check.py            all checks; kas and oelint-adv are found on PYTHONPATH (yocto-layer/tests/run installs them)
"""
import glob
import json
import os
import pathlib
import re
import subprocess
import sys

import jsonschema
import kas
import yaml

import tally
from tally import check

MAIN = pathlib.Path(__file__).resolve().parents[2]
LAYER = MAIN / "yocto-layer"


def read(path):
    return (MAIN / path).read_text()


def layout():
    text = read("yocto-layer/conf/include/kentledge-layout.inc")
    return dict(re.findall(r'^KENTLEDGE_(\w+) = "([^"]*)"$', text, re.M))


def kas_files():
    schema = json.loads((pathlib.Path(kas.__file__).parent / "schema-kas.json").read_text())
    problems = []
    for path in sorted(glob.glob(str(MAIN / "image/kas/**/*.yml"), recursive=True)):
        data = yaml.safe_load(open(path))
        try:
            jsonschema.validate(data, schema)
        except jsonschema.ValidationError as why:
            problems.append(f"{os.path.relpath(path, MAIN)}: {why.message}")
        for include in data["header"].get("includes", []):
            if not (MAIN / include).is_file():
                problems.append(f"{os.path.relpath(path, MAIN)}: {include} is not there")
    check("kas files fit kas's schema and include what is there", problems)


def machines():
    wanted = {"raspberrypi5", "raspberrypi4-64", "jetson-orin-nano-devkit-nvme", "qemuarm64"}
    found = {p.stem for p in (MAIN / "image/kas/machine").glob("*.yml")}
    problems = [f"{m} is missing" for m in wanted - found]
    for path in (MAIN / "image/kas/machine").glob("*.yml"):
        if yaml.safe_load(path.read_text())["machine"] != path.stem:
            problems.append(f"{path.name} names another machine")
    check("a kas file for each machine", problems)


def one_layout():
    """Labels and sizes are in one file; every user of them reads them from there."""
    words = layout()
    labels = [v for k, v in words.items() if k.startswith("LABEL_")]
    users = ["yocto-layer/files/wic/kentledge-ab-rpi.wks.in", "yocto-layer/files/wic/kentledge-ab-qemu.wks.in",
             "yocto-layer/files/rauc/system.conf.in", "yocto-layer/files/rauc/fw_env.config.in",
             "image/quick/boot/genimage.cfg", "image/quick/boot/boot.cmd", "image/quick/fstab"]
    problems = []
    for user in users:
        text = "\n".join(line for line in read(user).splitlines() if not line.startswith("#"))
        for label in labels:
            if label not in ("boot", "data") and re.search(rf"(?<![\w-]){re.escape(label)}(?![\w-])", text):
                problems.append(f"{user} names `{label}` itself")
        unknown = set(re.findall(r"@([A-Z_]+)@", text)) - set(words) - {"COMPATIBLE", "VERSION", "CHECK", "TREE", "CONSOLE_WORDS", "FILES"}
        unknown |= {w for w in re.findall(r"\$\{KENTLEDGE_(\w+)\}", text) if w not in words}
        problems += [f"{user} wants {word}, which the layout does not have" for word in unknown]
        if not re.search(r"@\w+@|\$\{KENTLEDGE_", text):
            problems.append(f"{user} uses no value of the layout")
    check("labels and sizes stand in the layout alone", problems)
    # Where a script cannot be filled in, it says the same.
    problems = []
    for script in ["systemd/kentledge-preinit", "yocto-layer/dynamic-layers/raspberrypi/recipes-bsp/rpi-u-boot-scr/files/boot.cmd.in"]:
        for label in re.findall(r"(?:PARTLABEL=|plabel )([a-z][\w-]*)", read(script)):
            if label not in labels:
                problems.append(f"{script}: no partition is called `{label}`")
    attempts = re.findall(r"BOOT_[AB]_LEFT (\d+)", read("yocto-layer/dynamic-layers/raspberrypi/recipes-bsp/rpi-u-boot-scr/files/boot.cmd.in"))
    problems += [f"boot.cmd.in: {n} attempts" for n in attempts if n != words["BOOT_ATTEMPTS"]]
    check("scripts name the same partitions and attempts", problems)
    # U-Boot knows no labels: where its environment lies follows from what lies before it.
    wks = read("yocto-layer/files/wic/kentledge-ab-rpi.wks.in")
    align = int(re.search(r"--align (\d+)", wks).group(1)) << 10
    at = align + -(-(int(words["BOOT_MIB"]) << 20) // align) * align
    size, copy = int(words["ENV_BYTES"], 16), int(words["ENV_COPY"], 16)
    cfg = dict(re.findall(r"^CONFIG_(\w+)=(\w+)$", read("yocto-layer/dynamic-layers/raspberrypi/recipes-bsp/u-boot/files/kentledge.cfg"), re.M))
    wanted = {"ENV_OFFSET": at, "ENV_OFFSET_REDUND": at + copy, "ENV_SIZE": size}
    problems = [f"CONFIG_{k} is {cfg.get(k)}, not {v:#x}" for k, v in wanted.items() if int(cfg.get(k, "0"), 16) != v]
    if copy < size or copy + size > int(words["ENV_MIB"]) << 20:
        problems.append("the two copies do not fit beside each other")
    check("a Raspberry Pi's U-Boot finds its environment where Linux does", problems)


def traps():
    """What only the real tools showed, each once."""
    problems = []
    if (LAYER / "wic").exists():
        problems.append("wks files lie in wic/: wrynose wants files/wic/")
    for path in list(LAYER.glob("recipes-*/**/*.bb")) + list(LAYER.glob("classes-recipe/*")):
        for line in path.read_text().splitlines():
            if re.match(r"(IMAGE_FSTYPES|WKS_FILE)\s*\??=", line):
                problems.append(f"{path.name}: `{line}`: a machine's own `?=` came first, or a `=` drops tegraflash")
    inc = read("yocto-layer/conf/distro/include/kentledge.inc")
    image = read("yocto-layer/classes-recipe/kentledge_image.bbclass")
    for key in ("IMAGE_FSTYPES", "WKS_FILE"):
        for override in ("rpi", "qemuall"):
            if f"{key}:{override} =" not in image:
                problems.append(f"{key}:{override} is not set")
        if key in inc:
            problems.append(f"{key} is set for the whole distro: an initramfs is an image, too")
    if "tegraflash-tar" not in image or 'USE_REDUNDANT_FLASH_LAYOUT_DEFAULT:tegra = "1"' not in inc:
        problems.append("Jetson: no tegraflash package, or no redundant layout")
    conf = read("yocto-layer/conf/layer.conf")
    for layer in ("rauc", "raspberrypi", "tegra"):
        if f"{layer}:${{LAYERDIR}}/dynamic-layers/{layer}/" not in conf:
            problems.append(f"dynamic-layers/{layer} is not behind BBFILES_DYNAMIC")
    if 'LAYERSERIES_COMPAT_kentledge = "wrynose"' not in conf:
        problems.append("the layer does not name wrynose")
    recipe = read("yocto-layer/recipes-kentledge/kentledge/kentledge_0.1.0.bb")
    if re.search(r"crate://[a-z]", recipe) or "Cargo.lock" not in recipe:
        problems.append("the daemon's crates are listed by hand")
    version = re.search(r'^version = "([^"]+)"', read("Cargo.toml"), re.M).group(1)
    if not (LAYER / f"recipes-kentledge/kentledge/kentledge_{version}.bb").exists():
        problems.append(f"no recipe for version {version}")
    if f'DISTRO_VERSION = "{version}"' not in read("yocto-layer/conf/distro/kentledge.conf"):
        problems.append(f"the distro is not version {version}")
    # The daemon's interface to ONNX Runtime is version 24.
    pv = re.search(r"onnxruntime-prebuilt_(\d+)\.(\d+)", " ".join(p.name for p in LAYER.glob("recipes-ml/*/*.bb")))
    if not pv or (int(pv.group(1)), int(pv.group(2))) < (1, 24):
        problems.append("ONNX Runtime is older than 1.24")
    if f"onnxruntime version={pv.group(0).split('_')[1]}" not in read("daemon/get-onnxruntime"):
        problems.append("another ONNX Runtime than daemon/get-onnxruntime's")
    check("the traps of wrynose and of the boards", problems)


def partitions():
    """What wic makes of the wks files: it writes mount points into /etc/fstab, and `empty` makes no file system."""
    problems = []
    for wks in sorted((LAYER / "files/wic").glob("*.wks.in")):
        parts = [line for line in wks.read_text().splitlines() if line.startswith("part ")]
        for part in parts:
            label = re.search(r"--part-name \$\{KENTLEDGE_LABEL_(\w+)\}", part).group(1)
            if re.match(r"part /\w", part):
                problems.append(f"{wks.name}: {label} has a mount point: systemd waits for a device that is not there")
            if "--source empty" in part and "--fstype" in part:
                problems.append(f"{wks.name}: {label} gets no file system: `--source empty` makes none")
        if len(parts) != 5:
            problems.append(f"{wks.name}: {len(parts)} partitions")
    check("each partition is made with its file system, and none is in fstab", problems)


def kernels():
    """What RAUC's verity bundles and the worker's sandbox need is built in, and a hanging kernel is reset."""
    options = dict(re.findall(r"^CONFIG_(\w+)=(.*)$", read("yocto-layer/files/kernel/kentledge.cfg"), re.M)) if (LAYER / "files/kernel").is_dir() else {}
    wanted = ["BLK_DEV_DM", "DM_VERITY", "BLK_DEV_LOOP", "SQUASHFS", "SQUASHFS_ZSTD", "CRYPTO_SHA256", "SECURITY_LANDLOCK", "SECCOMP_FILTER"]
    problems = [f"{name} is not built in" for name in wanted if options.get(name) != "y"]
    if "landlock" not in options.get("LSM", "").strip('"').split(","):
        problems.append("CONFIG_LSM does not name landlock")
    folder = LAYER / "dynamic-layers/raspberrypi/recipes-bsp/u-boot/files"
    uboot = "".join(p.read_text() for p in folder.glob("*.cfg"))
    problems += [f"U-Boot: {name} is not set" for name in ("WDT_BCM2835", "WATCHDOG_AUTOSTART") if f"CONFIG_{name}=y" not in uboot]
    timeout = re.search(r"CONFIG_WATCHDOG_TIMEOUT_MSECS=(\d+)", uboot)
    # The chip counts 20 bits of 65,536 a second.
    if not timeout or int(timeout.group(1)) > (1 << 20) * 1000 // 65536:
        problems.append("U-Boot: the watchdog's time is longer than the chip can count")
    check("kernels and U-Boot have the options that the device needs", problems)


def pinned():
    """Every upstream layer stands at one commit, and can be taken from a folder."""
    problems, commits, local = [], {}, set()
    for path in sorted((MAIN / "image/kas").rglob("*.yml")):
        for name, repository in (yaml.safe_load(path.read_text()).get("repos") or {}).items():
            if repository.get("url"):
                commit = repository.get("commit") or ""
                if not re.fullmatch(r"[0-9a-f]{40}", commit):
                    problems.append(f"{path.name}: {name} has no commit")
                if commits.setdefault(name, commit) != commit:
                    problems.append(f"{path.name}: {name} has another commit than elsewhere")
            elif repository.get("path"):
                local.add(name)
                problems += [f"{path.name}: {name}: {key} is not null" for key in ("url", "branch") if repository.get(key, "") is not None]
    problems += [f"{name} cannot be taken from a folder (feature/local-src*.yml)" for name in sorted(set(commits) - local)]
    check(f"kas takes each of the {len(commits)} upstream layers at one commit", problems)


def scripts_find_their_tools():
    """oe-core's busybox lacks these; the package that has each is among the daemon's."""
    packages = {"install": "coreutils", "head -c": "coreutils", "status=": "coreutils", "sync \"": "coreutils", "findfs": "util-linux-findfs",
                "blkid": "util-linux-blkid", "blockdev": "util-linux-blockdev", "blkdiscard": "util-linux-blkdiscard", "sfdisk": "util-linux-sfdisk",
                "partx": "util-linux-partx", "mkfs.ext4": "e2fsprogs-mke2fs", "e2fsck": "e2fsprogs-e2fsck", "resize2fs": "e2fsprogs-resize2fs",
                "mountpoint": "util-linux-mountpoint"}
    recipe = read("yocto-layer/recipes-kentledge/kentledge/kentledge_0.1.0.bb")
    has = set(re.search(r'RDEPENDS:\$\{PN\} \+= "\\\n(.*?)"', recipe, re.S).group(1).split()) if 'RDEPENDS:${PN} += "\\\n' in recipe else set()
    problems = []
    for script in sorted((MAIN / "systemd").iterdir()):
        text = script.read_text()
        if text.startswith("#!/bin/sh"):
            code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
            problems += [f"{script.name} uses `{tool}`: {package} is not installed" for tool, package in packages.items()
                         if re.search(rf"(?<![\w.-]){re.escape(tool)}", code) and package not in has]
    check("the scripts' tools are installed", problems)
    ssh = read("systemd/ssh.conf")
    check("sshd has its folder", [] if "ExecStartPre=\n" not in ssh or "RuntimeDirectory=sshd" in ssh else ["ssh.conf removes what made /run/sshd"])


def slots():
    """kentledge-slot on a board whose boot loader names no slot: Jetson, without U-Boot's environment."""
    import tempfile
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        at = pathlib.Path(folder)
        for name in ("proc", "run", "etc", "data/system", "bin", "sys/dev/block/259:2"):
            (at / name).mkdir(parents=True)
        (at / "proc/cmdline").write_text("console=ttyTCU0 ro\n")
        (at / "etc/os-release").write_text("BUILD_ID=two\n")
        (at / "bin/rauc").write_text(f'#!/bin/sh\necho "$@" >>{folder}/said\n')
        (at / "bin/systemctl").write_text(f'#!/bin/sh\necho "$@" >>{folder}/said\n')
        (at / "bin/mountpoint").write_text("#!/bin/sh\necho 259:2\n")
        for tool in (at / "bin").iterdir():
            tool.chmod(0o755)
        env = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}

        def play(script, *words):
            """The script with its folders inside this one."""
            text = re.sub(r"(?<![\w.])/(proc|run|etc|data|sys)/", rf"{folder}/\1/", script)
            return subprocess.run(["sh", "-c", text, "script", *words], env=env, capture_output=True, text=True)

        slot, preinit = read("systemd/kentledge-slot"), read("systemd/kentledge-preinit")
        noted = re.search(r"^if ! grep -q 'rauc.*?^fi$", preinit, re.S | re.M)
        for partition, expected in (("APP", "A"), ("rootfs-a", None), ("APP_b", "B")):
            (at / "sys/dev/block/259:2/uevent").write_text(f"MAJOR=259\nPARTNAME={partition}\n")
            (at / "run/kentledge-slot").unlink(missing_ok=True)
            play(noted.group(0) if noted else "true")
            note = at / "run/kentledge-slot"
            found = note.read_text().strip() if note.exists() else None
            if found != expected:
                problems.append(f"preinit on {partition} notes {found}, not {expected}")
        # Slot B, with another system found good in A before: on trial until it is marked good.
        (at / "data/system/slots").mkdir()
        (at / "data/system/slots/GOOD_A").write_text("one\n")
        steps = [("trial", 0), ("good", 0), ("trial", 1)]
        problems += [f"{word}: {got.returncode}: {got.stderr.strip()}" for word, code in steps if (got := play(slot, word)).returncode != code]
        good = at / "data/system/slots/GOOD_B"
        if not good.exists() or good.read_text() != "two\n":
            problems.append("what was found good in slot B is not noted")
    check("a slot that the boot loader does not name is known, tried and found good", problems)


def same_units():
    """Both ways install every file of systemd/ and udev/."""
    recipe = read("yocto-layer/recipes-kentledge/kentledge/kentledge_0.1.0.bb")
    quick = read("image/quick/assemble")
    others = {"kentledge.sysusers", "admin.sysusers"}  # useradd does it in the recipe
    problems = []
    for path in sorted((MAIN / "systemd").iterdir()):
        name = path.name
        by_name = lambda text: name in text or (name.endswith(".service") and "*.service" in text) or (
            name.startswith("kentledge-") and "." not in name and re.search(rf"for script in [^;]*\b{name[10:]}\b", text))
        if not by_name(recipe) and name not in others:
            problems.append(f"the recipe does not install {name}")
        if not by_name(quick) and name != "accelerator.conf":
            problems.append(f"the quick image does not install {name}")
    enabled = set(re.findall(r"^enable (\S+)", read("systemd/90-kentledge.preset"), re.M))
    for unit in enabled:
        if unit not in recipe or unit not in quick:
            problems.append(f"{unit} is not enabled everywhere")
    check("both images have the same units", problems)


# What oelint-adv says of this layer and why it stays; a reason that is no longer needed is a fault, too.
EXPLAINED = {
    "oelint.vars.homepageping": "our address is not on the net",
    "oelint.var.licenseremotefile": "the licence's text is this repository's own",
    "oelint.var.bbclassextend": "a product's layer, not a library's: nothing of it is native",
    "oelint.var.suggestedvar.CVE_PRODUCT": "our own programs have no entry in a list of weaknesses",
    "oelint.vars.dependsordered": "RDEPENDS stand in the order of their sense",
    "oelint.vars.specific": "`tegra` and `rpi` are overrides of the BSP layers, which oelint does not read",
    "oelint.func.specific": "the same, and the distro's override, by which the layer changes nothing by being there",
    "oelint.vars.noncoreoverride": "a search path alone changes no recipe; our own variables and functions are used under the override",
    "oelint.var.badimagefeature": "an image of a bench says what it is, and is never released (kentledge_release_checks)",
    "oelint.vars.insaneskip": "a prebuilt library was stripped and linked by its makers",
    "oelint.task.noanonpython": "the crates are those of Cargo.lock, and a bundle without keys is skipped: both are known at parse time",
    "oelint.task.docstrings": "what a task does is said by its name, or in the comment above it",
    "oelint.vars.multilineident": "FILES and USERADD_PARAM are as wide as their lines allow",
    "oelint.var.filesoverride": "a package of one folder: the defaults of FILES would take more",
    "oelint.var.order.FILES": "FILES stand beside what installs them",
    "oelint.var.mandatoryvar.SRC_URI": "nothing is fetched: models come from KENTLEDGE_BUNDLES, a bundle from an image, /data is made",
    "oelint.file.underscores": "a bundle has the distro's version",
    "oelint.vars.mispell.unknown": "variables of meta-rauc and meta-tegra, and tasks of oe-core's image types",
    "oelint.vars.pathhardcode.libdir": "the kernel's line and RAUC's configuration name files of the device",
}


def lint():
    files = [str(p) for kind in ("*.bb", "*.bbappend", "*.bbclass") for p in sorted(LAYER.rglob(kind)) if "standins" not in p.parts]
    out = subprocess.run([sys.executable, "-m", "oelint_adv", "--release", "wrynose", "--quiet", *files], capture_output=True, text=True)
    lines = [l for l in (out.stdout + out.stderr).splitlines() if re.search(r":(error|warning|info):", l)]
    kind = lambda line: re.search(r":(?:error|warning|info):([\w.]+)", line)[1]
    known = lambda line: next((k for k in EXPLAINED if kind(line) == k or kind(line).startswith(k + ".")), None)
    problems = [l.replace(str(MAIN) + "/", "") for l in lines if not known(l)]
    problems += [f"{k} is explained, and not found" for k in EXPLAINED if k not in {known(l) for l in lines}]
    check(f"oelint-adv over {len(files)} files: {len(lines)} findings, each explained", problems)


def nvbootctrl():
    """Our backend against a boot loader's tool that answers as boards in the field did."""
    backend = LAYER / "dynamic-layers/tegra/recipes-bsp/slot/files/nvbootctrl-backend"
    import tempfile
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        tool = pathlib.Path(folder) / "nvbootctrl"

        def ask(slots, status_b, *words):
            (tool.parent / "verified").unlink(missing_ok=True)
            tool.write_text(f"""#!/bin/sh
case $1 in
get-number-slots) echo {slots} ;;
get-current-slot) echo 0 ;;
dump-slots-info) printf 'Current version: 36.4\\nActive bootloader slot: B\\nnum_slots: {slots}\\n'
  printf 'slot: 0,             status: normal\\nslot: 1,             status: {status_b}\\n' ;;
set-active-boot-slot) echo "$2" > {folder}/active ;;
verify) : > {folder}/verified ;;
mark-boot-successful) exit 1 ;;
*) : ;;
esac
""")
            tool.chmod(0o755)
            out = subprocess.run([backend, *words], env={**os.environ, "NVBOOTCTRL": str(tool)}, capture_output=True, text=True)
            return out.returncode, out.stdout.strip()

        for words, slots, status, expected in [
            (("get-current",), 2, "normal", (0, "A")), (("get-primary",), 2, "normal", (0, "B")),
            (("get-state", "B"), 2, "unbootable", (0, "bad")), (("get-state", "A"), 2, "normal", (0, "good")),
            (("set-primary", "B"), 2, "normal", (0, "")), (("set-primary", "B"), 2, "255", (1, "")),
            (("set-primary", "B"), 1, "normal", (1, "")), (("set-state", "B", "bad"), 2, "0xFF", (1, "")),
            (("get-state", "C"), 2, "normal", (1, "")),
        ]:
            got = ask(slots, status, *words)
            if got != expected and not (words == ("get-state", "C") and got[0] != 0):
                problems.append(f"{words} with {slots} slots, B {status}: {got}, not {expected}")
        # The running slot alone is verified: since Jetson Linux 35 there is no other way to say good.
        for slot, expected in (("A", True), ("B", False)):
            ask(2, "normal", "set-state", slot, "good")
            if (tool.parent / "verified").exists() != expected:
                problems.append(f"set-state {slot} good from slot A: verified is {not expected}")
    check("nvbootctrl backend refuses what is not armed", problems)


for test in (kas_files, machines, pinned, one_layout, partitions, kernels, traps, same_units, scripts_find_their_tools, slots, nvbootctrl, lint):
    test()
sys.exit(tally.end())
