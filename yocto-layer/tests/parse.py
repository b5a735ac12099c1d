#!/usr/bin/env python3
"""The layer, read and run by BitBake itself (from the package `bitbake-setup`), with stand-ins for the upstream layers.

    parse.py WORK       every recipe for every machine; the daemon's recipe fetched, unpacked, resolved and installed; RAUC's
                        configuration as it is installed; the release checks over roots that must not be released
    parse.py WORK full  the daemon compiled as well, for aarch64, from nothing but what the fetcher unpacked

No network: a crate comes from cargo's own cache on this machine, with the checksum of Cargo.lock.
"""
import configparser
import glob
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib
import types

# The package leaves out two servers that nothing here asks.
for module in ("hashserv", "hashserv.client", "prserv", "prserv.serv"):
    sys.modules[module] = types.ModuleType(module)
import bb
import bb.build
import bb.cooker
import bb.cookerdata
import bb.event
import bb.fetch2
import bb.parse
import bb.server.process

import tally
from tally import check

MAIN = pathlib.Path(__file__).resolve().parents[2]
LAYER = MAIN / "yocto-layer"
STANDINS = LAYER / "tests/standins"
MACHINES = {
    "qemuarm64": [], "raspberrypi5": ["raspberrypi"], "raspberrypi4-64": ["raspberrypi"],
    "jetson-orin-nano-devkit-nvme": ["tegra"],
}


def wrong(pairs):
    return [f"{name} is `{found}`, not `{wanted}`" for name, found, wanted in pairs if found != wanted]


class Heard(logging.Handler):
    """Whatever BitBake has to complain of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage().replace("\n", " ")[:300])


class Config:
    """What BitBake's command line would have said."""

    def __init__(self, env):
        self.prefile, self.postfile, self.tracking, self.skip_fragments, self.env = [], [], False, False, env


class World:
    """One machine's configuration, its recipes, and BitBake's complaints."""

    def __init__(self, work, machine, layers, settings=()):
        self.top = work / machine
        shutil.rmtree(self.top, ignore_errors=True)
        (self.top / "conf").mkdir(parents=True)
        paths = [STANDINS / "core", *(STANDINS / layer for layer in layers), LAYER]
        (self.top / "conf/bblayers.conf").write_text(
            'BBPATH = "${TOPDIR}"\nBBFILES ?= ""\nBBLAYERS = "%s"\nMACHINE = "%s"\nDISTRO = "kentledge"\n'
            % (" ".join(map(str, paths)), machine) + "".join(f'{k} = "{v}"\n' for k, v in dict(settings).items()))
        self.heard = Heard()
        logging.getLogger("BitBake").handlers = [self.heard]
        os.chdir(self.top)
        os.environ["BBPATH"] = str(self.top)
        env = {**os.environ, "BB_ENV_PASSTHROUGH_ADDITIONS": "BBPATH"}
        self.builder = bb.cookerdata.CookerDataBuilder(Config(env), False)
        self.builder.parseBaseConfiguration(worker=True)
        self.data = self.builder.data
        collect = bb.cooker.CookerCollectFiles([])
        files, _, _ = collect.collect_bbfiles(self.data, self.data)
        self.files = [f for f in files if "/standins/" not in f]
        self.appended = {os.path.basename(a) for f in files for a in collect.get_file_appends(f)}
        self.recipes = {}
        for file in files:
            data = self.builder.parseRecipeVariants(file, collect.get_file_appends(file), mc="")[""]
            self.recipes[data.getVar("PN")] = (file, data)

    def var(self, recipe, name):
        return self.recipes[recipe][1].getVar(name)

    def run(self, recipe, *tasks):
        """Runs tasks of a recipe, as BitBake's worker does; what failed."""
        file, data = self.recipes[recipe]
        bb.parse.siggen.setup_datacache_from_datastore(file, data)
        for task in tasks:
            bb.utils.mkdirhier(data.getVar("STAMP").rsplit("/", 1)[0])
            if bb.build.exec_task(file, task, data, False) != 0:
                logs = sorted(glob.glob(data.getVar("T") + "/log." + task + "*"), key=os.path.getmtime)
                text = open(logs[-1]).read()[-1500:] if logs else "; ".join(self.heard.said[-3:])
                return [f"{recipe}: {task}: {text}"]
        return []


def layout():
    out = subprocess.run([MAIN / "image/quick/layout"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in out.replace('"', "").splitlines())


def parses(work, keys):
    """Every recipe, for every machine, with and without the layers that it may meet."""
    for machine, bsp in MACHINES.items():
        for layers in ([*bsp, "rauc"], bsp):
            world = World(work, machine, layers, {"KENTLEDGE_KEYS": keys})
            problems = list(world.heard.said)
            ours = {os.path.basename(f) for f in world.files}
            dynamic = {"linux-yocto_%.bbappend"}
            if "raspberrypi" in bsp:
                dynamic |= {"rpi-u-boot-scr.bbappend", "u-boot_%.bbappend", "linux-raspberrypi_%.bbappend"}
            if "tegra" in bsp:
                dynamic |= {"tegra-storage-layout_%.bbappend", "tegra-minimal-init_%.bbappend", "linux-noble-nvidia-tegra_%.bbappend"}
            dynamic |= {"rauc-conf.bbappend", "rauc_%.bbappend"} if "rauc" in layers else set()
            problems += wrong([("appended", world.appended, dynamic)])
            problems += wrong([("a bundle", "kentledge-bundle.bb" in ours, "rauc" in layers)])
            problems += wrong([("nvbootctrl", "kentledge-nvbootctrl_1.0.bb" in ours, "tegra" in bsp)])
            check(f"BitBake reads {len(ours)} recipes for {machine} {'with' if 'rauc' in layers else 'without'} meta-rauc", problems)
        image, tegra = "kentledge-image", "tegra" in bsp
        kinds = "tegraflash-tar.zst ext4" if tegra else "ext4 wic.zst wic.bmap"
        wks = {"rpi": "kentledge-ab-rpi.wks.in", "qemuall": "kentledge-ab-qemu.wks.in"}
        which = None if tegra else wks["rpi" if bsp else "qemuall"]
        runtime = "onnxruntime" if tegra else "onnxruntime-prebuilt"
        check(f"what overrides say holds on {machine}", wrong([
            ("IMAGE_FSTYPES", world.var(image, "IMAGE_FSTYPES"), kinds), ("WKS_FILE", world.var(image, "WKS_FILE"), which),
            ("KENTLEDGE_COMPATIBLE", world.var(image, "KENTLEDGE_COMPATIBLE"), f"kentledge-{machine}"),
            ("KENTLEDGE_RELEASE", world.var(image, "KENTLEDGE_RELEASE"), "1"),
            ("KENTLEDGE_RELEASE of -dev", world.var("kentledge-image-dev", "KENTLEDGE_RELEASE"), "0"),
            ("the daemon's runtime", [p for p in world.var("kentledge", "RDEPENDS:kentledge").split() if "onnxruntime" in p], [runtime]),
            ("read-only root", "read-only-rootfs" in world.var(image, "IMAGE_FEATURES").split(), True),
            ("the way into an image of a bench", "empty-root-password" in world.var(image, "IMAGE_FEATURES").split(), False),
        ]))
        real_layers(world, machine, bsp)


def real_layers(world, machine, bsp):
    """What broke on the real layers, whose manner the stand-ins have."""
    image, tegra, rpi = "kentledge-image", "tegra" in bsp, "raspberrypi" in bsp
    installs = world.var(image, "IMAGE_INSTALL").split()
    kernel = {"qemuarm64": "linux-yocto", "raspberrypi": "linux-raspberrypi", "tegra": "linux-noble-nvidia-tegra"}[bsp[0] if bsp else machine]
    head = subprocess.run(["git", "-C", MAIN, "log", "-1", "--pretty=%H %ct"], capture_output=True, text=True, check=True).stdout.split()
    depends = lambda recipe: {path for path, *_ in world.recipes[recipe][1].getVar("__depends", False)}
    log = os.path.normpath(world.var(image, "KENTLEDGE_HEAD_LOG") or "none")
    pairs = [
        ("the distro's override", "kentledge" in world.data.getVar("OVERRIDES").split(":"), False),
        ("the kernel in the slot", "kernel-image" in installs, not tegra),
        ("kernel modules", "kernel-modules" in installs, True),
        ("the Pi's udev rules", "udev-rules-rpi" in installs, rpi),
        ("the GPU's driver and the fan", "packagegroup-machine-base" in installs, tegra),
        ("the boot script is deployed", "kentledge-boot-scr" in (world.var(image, "EXTRA_IMAGEDEPENDS") or ""), not bsp),
        ("the kernel's options", (world.var(kernel, "SRC_URI") or "").split(), ["file://kentledge.cfg"]),
        ("the newest file's time", world.var(image, "REPRODUCIBLE_TIMESTAMP_ROOTFS"), head[1]),
        ("the revision", world.var("kentledge", "SRCREV"), head[0]),
        ("the configuration's digest has no revision", "KENTLEDGE_REV" in (world.data.getVar("BB_HASHCONFIG_IGNORE_VARS") or "").split(), True),
        ("a commit parses the daemon's recipe again", log in {os.path.normpath(p) for p in depends("kentledge")}, True),
        ("a commit parses the image's recipe again", log in {os.path.normpath(p) for p in depends(image)}, True),
        ("SSH's ways", sorted(set(world.var("openssh", "PACKAGECONFIG").split())), ["systemd-sshd-service-mode"]),
        ("stripping is left to oe-core", world.var("kentledge", "CARGO_PROFILE_RELEASE_STRIP"), "none"),
        ("cargo's folder in the debug information", "prefix-map=" + world.var("kentledge", "CARGO_HOME") in (world.var("kentledge", "DEBUG_PREFIX_MAP") or ""), True),
    ]
    for recipe in ("kentledge", "kentledge-mounts"):
        pairs.append((f"{recipe} is for one machine", world.var(recipe, "PACKAGE_ARCH"), machine))
    data = world.recipes["kentledge"][1]
    pairs.append(("a new keyset makes the package again", "keyset.json:True" in (data.getVarFlag("do_install", "file-checksums") or ""), True))
    address = world.var("onnxruntime-prebuilt", "SRC_URI").split()[0]
    pairs.append(("the wheel's address is by its content", bool(re.search(r"/packages/[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{60}/onnxruntime-1", address)), True))
    if tegra:
        pairs += [("the initramfs' types", world.var("tegra-minimal-initramfs", "IMAGE_FSTYPES"), "cpio.gz"),
                  ("read-only", (world.var(image, "UBOOT_EXTLINUX_KERNEL_ARGS") or "").split()[-1:], ["ro"]),
                  ("a slot's bytes", world.var(image, "ROOTFSPART_SIZE"), "8589934592"),
                  ("what says good at each start", world.var("tegra-redundant-boot", "SYSTEMD_AUTO_ENABLE"), "disable"),
                  ("the board's group does not bring it", world.var(image, "MACHINE_EXTRA_RDEPENDS").split(), ["tegra-nvfancontrol"]),
                  ("no Python for ONNX Runtime", world.var("onnxruntime", "RDEPENDS:onnxruntime").split(), ["cuda-cudart"]),
                  ("nvbootctrl's package", world.var("kentledge-nvbootctrl", "RDEPENDS:kentledge-nvbootctrl").split(), ["tegra-redundant-boot-base"]),
                  ("the flash tool's /data", (world.var(image, "IMAGE_TEGRAFLASH_DATA") or "").rsplit("/", 1)[-1], "kentledge-data.ext4")]
    if rpi:
        pairs += [("U-Boot's options", world.var("u-boot", "SRC_URI").split(), ["file://kentledge.cfg", "file://kentledge-watchdog.cfg"]),
                  ("the boot partition has no kernel", "IMAGETYPE" in (world.var(image, "RPI_EXTRA_IMAGE_BOOT_FILES") or "IMAGETYPE").replace("SDIMG", ""), False)]
    check(f"what broke on the real layers holds on {machine}", wrong(pairs))
    if not bsp and "kentledge-boot-scr" in world.recipes:
        problems = world.run("kentledge-boot-scr", "do_fetch", "do_unpack", "do_compile")
        if not problems:
            script = pathlib.Path(world.var("kentledge-boot-scr", "B"), "boot.cmd").read_text()
            code = "\n".join(line for line in script.splitlines() if not line.startswith("#"))
            problems = [f"{word} is not filled in" for word in re.findall(r"@[A-Z_]+@", code)] + ["it wants an initrd"] * ("initrd" in code)
            problems += [f"`{word}` is missing" for word in ("/boot/Image", "booti ${kernel_addr_r} - ", "setenv tree", "plabel rootfs-b") if word not in code]
        check("QEMU's boot script is filled in, and starts a kernel without an initrd", problems)
    if tegra:
        problems = world.run("tegra-storage-layout", "do_install") + world.run("tegra-minimal-init", "do_install")
        if not problems:
            xml = pathlib.Path(world.var("tegra-storage-layout", "D"), "usr/share/tegraflash/external-flash.xml").read_text()
            names = re.findall(r'<partition name="(\w+)"(?:(?!</partition>).)*?<filename> (\w+)', xml, re.S)
            problems = wrong([("partitions with their files", names, [("data", "DATAFILE"), ("APP", "APPFILE")])])
            init = pathlib.Path(world.var("tegra-minimal-init", "D"), "init").read_text()
            problems += wrong([("what the initramfs starts", init.splitlines()[-1], "exec switch_root /mnt /usr/lib/kentledge/preinit")])
        check("a Jetson's flash layout has /data, and its initramfs starts preinit", problems)


def daemon(work, keys, full):
    """The daemon's recipe, by BitBake's own fetcher and tasks."""
    target = {}
    if full:
        out = subprocess.run([MAIN / "image/quick/toolchain"], capture_output=True, text=True, check=True).stdout
        os.environ.update(line.split("=", 1) for line in out.splitlines())
        # What is only looked at is not optimised over all crates at once: that takes minutes.
        os.environ.update({"CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"})
        target = {"KENTLEDGE_TARGET": "aarch64-unknown-linux-gnu"}
    cargo = os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))
    caches = glob.glob(cargo + "/registry/cache/*/")
    # Where something else answers in the registry's name, cargo keeps it apart; the fetcher wants one folder.
    crates = work / "crates"
    crates.mkdir(exist_ok=True)
    for crate in (file for cache in caches for file in glob.glob(cache + "*.crate")):
        link = crates / os.path.basename(crate)
        link.exists() or link.symlink_to(crate)
    binary = next((str(MAIN / f"target/{p}/kentledge") for p in ("debug", "release") if (MAIN / f"target/{p}/kentledge").exists()), "")
    more = {"BB_ENV_PASSTHROUGH_ADDITIONS": "", "KENTLEDGE_KEYS": keys, "KENTLEDGE_CRATES": crates, "KENTLEDGE_BINARY": binary, **target}
    world = World(work, "raspberrypi5", ["raspberrypi", "rauc"], more)
    lock = tomllib.loads((MAIN / "Cargo.lock").read_text())["package"]
    wanted = {f"crate://{p['source'].rsplit('/', 1)[1].removesuffix('-index')}/{p['name']}/{p['version']}" for p in lock if "source" in p}
    uris = {u for u in world.var("kentledge", "SRC_URI").split() if u.startswith("crate://")}
    check(f"the recipe's {len(uris)} crates are those of Cargo.lock", sorted(uris ^ wanted))
    began = time.monotonic()
    problems = world.run("kentledge", "do_fetch", "do_unpack")
    check(f"they are fetched without a network and unpacked, each with its checksum ({time.monotonic() - began:.0f} s)", problems)
    if problems:
        return
    problems = world.run("kentledge", "do_configure", "do_compile")
    check("cargo compiles the daemon for aarch64 from them alone" if full else "cargo resolves the whole workspace from them alone", problems)
    if problems:
        return
    check("the recipe installs", problems := world.run("kentledge", "do_install"))
    if problems:
        return
    root = pathlib.Path(world.var("kentledge", "D"))
    there = {"/" + str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir() or p.is_symlink()}
    packed = {f for pattern in world.var("kentledge", "FILES:kentledge").split() for f in there
              if pathlib.PurePath(f).match(pattern) or f.startswith(pattern + "/")}
    check(f"each of the {len(there)} files that it installs is in a package", sorted(there - packed))
    units = world.var("kentledge", "SYSTEMD_SERVICE:kentledge").split()
    missing = [u for u in units if f"/usr/lib/systemd/system/{u}" not in there]
    # What a unit or RAUC starts is there under that name.
    for unit in root.rglob("*.service"):
        for line in unit.read_text().splitlines():
            program = line.removeprefix("ExecStart=").split(" ")[0]
            if line.startswith("ExecStart=") and "kentledge" in program and program not in there:
                missing.append(f"{unit.name} starts {program}")
    elf = (root / "usr/bin/kentledge").read_bytes()[:20]
    if full and elf[18:20] != b"\xb7\x00":
        missing.append("the program is not aarch64's")
    check("units are installed, and what they start", missing)


def rauc(work, keys):
    """RAUC's configuration as it is installed, by board."""
    words = layout()
    for machine, bsp in MACHINES.items():
        world = World(work, machine, [*bsp, "rauc"], {"KENTLEDGE_KEYS": keys})
        problems = world.run("rauc-conf", "do_fetch", "do_unpack", "do_install") + world.run("rauc", "do_fetch", "do_unpack", "do_install")
        if not problems:
            root = pathlib.Path(world.var("rauc-conf", "D"))
            conf = configparser.ConfigParser(strict=True)
            conf.read(root / "etc/rauc/system.conf")
            tegra = "tegra" in bsp
            problems += wrong([
                ("compatible", conf["system"]["compatible"], f"kentledge-{machine}"),
                ("bootloader", conf["system"]["bootloader"], "custom" if tegra else "uboot"),
                ("boot-attempts", conf["system"].get("boot-attempts"), None if tegra else words["BOOT_ATTEMPTS"]),
                ("backend", conf["handlers"].get("bootloader-custom-backend"),
                 "/usr/lib/kentledge/nvbootctrl-backend" if tegra else None),
                ("pre-install", conf["handlers"]["pre-install"], "/usr/lib/kentledge/bundle-check"),
                ("slots", [conf[f"slot.rootfs.{n}"]["device"].rsplit("/", 1)[1] for n in (0, 1)],
                 ["APP", "APP_b"] if tegra else [words["LABEL_A"], words["LABEL_B"]]),
                ("keyring", (root / "etc/rauc/keyring.pem").read_text(), pathlib.Path(keys, "rauc-ca.pem").read_text()),
            ])
            # RAUC's package has the rule who may ask; two packages with one file cannot be installed.
            of_rauc = pathlib.Path(world.var("rauc", "D"))
            rule = "usr/share/dbus-1/system.d/de.pengutronix.rauc.conf"
            files = lambda at: {p.relative_to(at) for p in at.rglob("*") if p.is_file()}
            problems += wrong([
                ("who may ask RAUC", 'user="kentledge"' in (of_rauc / rule).read_text(), True),
                ("files in two packages", sorted(files(root) & files(of_rauc)), []),
                ("what marks good", (world.var("rauc", "RRECOMMENDS:rauc") or "").split(), []),
                ("rauc-conf is for one machine", world.var("rauc-conf", "PACKAGE_ARCH"), machine),
                ("a new key makes it again", "rauc-ca.pem:True" in (world.recipes["rauc-conf"][1].getVarFlag("do_install", "file-checksums") or ""), True),
                ("nvbootctrl comes with it", "kentledge-nvbootctrl" in (world.var("rauc-conf", "RDEPENDS:rauc-conf") or ""), tegra),
            ])
            environment = root / "etc/fw_env.config"
            lines = [l.split() for l in environment.read_text().splitlines() if l and l[0] != "#"] if environment.exists() else []
            # A Raspberry Pi's U-Boot keeps its environment twice; one line would misread it. A Jetson has no U-Boot.
            copies = [] if tegra else ["0x0", words["ENV_COPY"]] if "raspberrypi" in bsp else ["0x0"]
            device = f"/dev/disk/by-partlabel/{words['LABEL_ENV']}"
            problems += wrong([("fw_env.config", lines, [[device, at, words["ENV_BYTES"]] for at in copies])])
            problems += [f"@{w}@ is not filled in" for f in root.rglob("*.conf*") for w in [f.read_text().partition("@")[2][:12]] if w]
        check(f"RAUC and the boot loader's environment on {machine}", problems)


def releases(work, keys):
    """What must not leave the house stops the image."""

    def root(name, change):
        at = work / "roots" / name
        shutil.rmtree(at, ignore_errors=True)
        for path, text in {"etc/shadow": "root:*:1::::::\nadmin:!:1::::::\n", "etc/rauc/keyring.pem": "k", "usr/lib/os-release": "ID=x\n",
                           "usr/lib/kentledge/keyset.json": "{}", "etc/ssh/sshd_config": ""}.items():
            (at / path).parent.mkdir(parents=True, exist_ok=True)
            (at / path).write_text(text)
        change(at)
        return at

    def listening(at):
        wants = at / "etc/systemd/system/sockets.target.wants"
        wants.mkdir(parents=True)
        (wants / "sshd.socket").symlink_to("/usr/lib/systemd/system/sshd.socket")

    bad = {
        "good": lambda at: None,
        "a password": lambda at: (at / "etc/shadow").write_text("root:$6$x$y:1::::::\n"),
        "no password at all": lambda at: (at / "etc/shadow").write_text("admin::1::::::\n"),
        "no keyring": lambda at: (at / "etc/rauc/keyring.pem").unlink(),
        "an open socket for SSH": listening,
        "no keyset": lambda at: (at / "usr/lib/kentledge/keyset.json").unlink(),
    }
    problems = []
    for name, change in bad.items():
        world = World(work, "qemuarm64", [], {"KENTLEDGE_KEYS": keys, "KENTLEDGE_ROOT": root(name, change)})
        said = world.run("kentledge-image", "do_rootfs")
        if bool(said) == (name == "good"):
            problems.append(f"{name}: {said or 'released'}")
        if said and "must not be released" not in said[0]:
            problems.append(f"{name}: {said}")
    # The image itself takes these away, before it looks.
    def leaky(at):
        (at / "etc/ssh/ssh_host_ed25519_key").write_text("k")
        # As base-passwd has it; oe-core closes it, and the checks look after that.
        (at / "etc/shadow").write_text("root::1::::::\n")
        (at / "usr/su").write_text("")
        (at / "usr/su").chmod(0o4755)
    world = World(work, "qemuarm64", [], {"KENTLEDGE_KEYS": keys, "KENTLEDGE_ROOT": root("leaky", leaky)})
    problems += world.run("kentledge-image", "do_rootfs")
    made = pathlib.Path(world.var("kentledge-image", "IMAGE_ROOTFS"))
    problems += wrong([("host keys", list(made.glob("etc/ssh/ssh_host_*")), []), ("mode", (made / "usr/su").stat().st_mode & 0o6000, 0),
                       ("machine-id", (made / "etc/machine-id").read_text(), ""),
                       ("version", "IMAGE_VERSION=0.1.0" in (made / "usr/lib/os-release").read_text(), True)])
    check(f"{len(bad) - 1} roots that must not be released stop the image, and a good one does not", problems)
    # A bundle of other keys is another one, and without keys there is none.
    world = World(work, "qemuarm64", ["rauc"], {"KENTLEDGE_KEYS": keys})
    flag = world.recipes["kentledge-bundle"][1].getVarFlag("do_bundle", "file-checksums") or ""
    check("other keys make another bundle", [name for name in ("rauc.key", "rauc.pem") if f"/{name}:True" not in flag])
    # A device refuses a system without the provider of its model.
    says = {board: World(work, board, [*layers, "rauc"], {"KENTLEDGE_KEYS": keys}).var("kentledge-bundle", "RAUC_BUNDLE_DESCRIPTION")
            for board, layers in [("qemuarm64", []), ("jetson-orin-nano-devkit-nvme", ["tegra"])]}
    check("a bundle says what runs models in its system", wrong([(board, says[board].split("providers: ")[1], wanted) for board, wanted in
                                                               [("qemuarm64", "cpu"), ("jetson-orin-nano-devkit-nvme", "tensorrt cuda cpu")]]))
    world = World(work, "qemuarm64", ["rauc"])
    check("without keys there is no bundle", [] if world.var("kentledge-bundle", "__SKIPPED") else ["it is not skipped"])


def main():
    work, full = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:] == ["full"]
    work.mkdir(parents=True, exist_ok=True)
    # U-Boot's tool, which only puts a header before a script.
    (work / "bin").mkdir(exist_ok=True)
    (work / "bin/mkimage").write_text('#!/bin/sh\nfor last; do :; done\n: >"$last"\n')
    (work / "bin/mkimage").chmod(0o755)
    os.environ["PATH"] = f"{work}/bin:{os.environ['PATH']}"
    keys = work / "keys"
    if not keys.exists():
        subprocess.run([MAIN / "image/keys/make", keys], check=True, stdout=subprocess.DEVNULL)
    parses(work, keys)
    rauc(work, keys)
    releases(work, keys)
    daemon(work, keys, full)
    sys.exit(tally.end())


main()
