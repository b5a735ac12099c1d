#!/usr/bin/env python3
"""What the real layers make of ours, for one machine: run in a build folder, with BitBake on PYTHONPATH (tests/oe.py).

The packages that the image would install, from the recipes' own RDEPENDS and RRECOMMENDS (BitBake's recipe cache), each with
the recipe that provides it; then the values that were wrong on the real layers once.
"""
import os
import pathlib
import re
import sys

import bb.tinfoil
import bb.utils

import tally
from tally import check

IMAGE = "kentledge-image"


class Look:
    def __init__(self, tinfoil):
        self.tinfoil, self.cache, self.recipes = tinfoil, tinfoil.cooker.recipecaches[""], {}
        self.graph = set(pathlib.Path("pn-buildlist").read_text().split())
        self.patterns = [(re.compile(pattern), files) for pattern, files in self.cache.packages_dynamic.items()]
        self.best = {}

    def recipe(self, name):
        if name not in self.recipes:
            self.recipes[name] = self.tinfoil.parse_recipe(name)
        return self.recipes[name]

    def var(self, name, variable):
        return self.recipe(name).getVar(variable) or ""

    def chosen(self, file):
        """Whether this file is the one that BitBake takes of all of this recipe's versions."""
        name = self.cache.pkg_fn[file]
        if name not in self.best:
            try:
                self.best[name] = self.tinfoil.find_best_provider(name)[3]
            except bb.providers.NoProvider:
                self.best[name] = file
        return self.best[name] == file

    def provider(self, package):
        """The recipe's file for a package; recipes in the image's task graph come first."""
        found = list(self.cache.packages.get(package, [])) or list(self.cache.rproviders.get(package, []))
        found = found or [file for pattern, files in self.patterns if pattern.match(package) for file in files]
        for rule in (self.chosen, lambda file: self.cache.pkg_fn[file] in self.graph):
            found = [file for file in found if rule(file)] or found
        return found[0] if found else None

    def real_name(self, package, file):
        """A name from RPROVIDES is another package's."""
        if file in self.cache.packages.get(package, []):
            return package
        data = self.tinfoil.parse_recipe_file(file)
        for name in (data.getVar("PACKAGES") or "").split():
            if package in bb.utils.explode_dep_versions2(data.getVar("RPROVIDES:" + name) or ""):
                return name
        return package

    def closure(self):
        """Packages with what asks for each, and the names that nothing provides."""
        left_out = self.var(IMAGE, "BAD_RECOMMENDATIONS").split() + self.var(IMAGE, "PACKAGE_EXCLUDE").split()
        packages, missing = {}, {}
        todo = [(name, IMAGE, False) for name in self.var(IMAGE, "PACKAGE_INSTALL").split()]
        while todo:
            package, reason, recommended = todo.pop(0)
            if package in packages or package in missing or (recommended and package in left_out):
                continue
            file = self.provider(package)
            if not file:
                missing[package] = reason
                continue
            name = self.real_name(package, file)
            packages[package] = (name, os.path.basename(file), reason)
            for table, kind in ((self.cache.rundeps, False), (self.cache.runrecs, True)):
                todo += [(entry.split(" ")[0], package, kind) for entry in table[file].get(name, [])]
        return packages, missing


def wrong(pairs):
    return [f"{name} is `{found}`, not `{wanted}`" for name, found, wanted in pairs if found != wanted]


def packages(look, machine):
    found, missing = look.closure()
    with open("packages.tsv", "w") as out:
        for package in sorted(found):
            print(package, *found[package], sep="\t", file=out)
    check(f"{machine}: every package of the image has a recipe", [f"{name} (wanted by {reason})" for name, reason in missing.items()])
    names = {real for real, _, _ in found.values()} | set(found)
    tegra = machine.startswith("jetson")
    wanted = {"kentledge", "kentledge-models", "kentledge-mounts", "rauc", "rauc-service", "rauc-conf", "coreutils", "util-linux-blkid",
              "util-linux-blockdev", "util-linux-blkdiscard", "e2fsprogs-mke2fs", "openssh-sshd", "kernel-modules",
              *(["kentledge-nvbootctrl", "tegra-redundant-boot-base", "onnxruntime", "nvidia-kernel-oot-compute-nvgpu"] if tegra
                else ["kernel-image", "libubootenv-bin", "onnxruntime-prebuilt"])}
    if machine.startswith("raspberrypi"):
        wanted.add("udev-rules-rpi")
    unwanted = {"python3-core": "the daemon needs no Python", "rauc-mark-good": "it marks good at each start",
                "tegra-redundant-boot": "it marks good at each start", "synaptics-killswitch": "a licence to be accepted", "u-boot-env": "rauc-conf has fw_env.config, too"}
    check(f"{machine}: the image has what the device needs, and nothing that works against it",
          [f"{name} is missing" for name in sorted(wanted - names)]
          + [f"{name} is there ({why}), wanted by {[reason for real, _, reason in found.values() if real == name]}" for name, why in unwanted.items() if name in names])
    print(len(found), "packages,", len(missing), "without a recipe")


def image(look, machine):
    tegra, rpi = machine.startswith("jetson"), machine.startswith("raspberrypi")
    commands = look.var(IMAGE, "ROOTFS_POSTPROCESS_COMMAND").replace(";", " ").split()
    theirs = [c for c in commands if not c.startswith("kentledge_")]
    pairs = [
        ("IMAGE_FSTYPES", look.var(IMAGE, "IMAGE_FSTYPES"), "tegraflash-tar.zst ext4" if tegra else "ext4 wic.zst wic.bmap"),
        ("the last commands over the root", commands[-3:], ["kentledge_rootfs", "kentledge_no_setuid", "kentledge_release_checks"]),
        ("zap_empty_root_password among oe-core's commands", "zap_empty_root_password" in theirs, True),
        ("init=", "init=/usr/lib/kentledge/preinit" in look.var(IMAGE, "APPEND"), True),
        ("the newest file's time", look.var(IMAGE, "REPRODUCIBLE_TIMESTAMP_ROOTFS"), look.var(IMAGE, "KENTLEDGE_TIME")),
        ("the revision that is built", look.var("kentledge", "SRCREV"), look.var(IMAGE, "KENTLEDGE_REV")),
    ]
    files = look.var(IMAGE, "IMAGE_BOOT_FILES").split()
    if not tegra:
        pairs += [("WKS_FILE", look.var(IMAGE, "WKS_FILE"), f"kentledge-ab-{'rpi' if rpi else 'qemu'}.wks.in"),
                  ("boot.scr on the boot partition", "boot.scr" in files, True), ("a kernel on the boot partition", "Image" in files, False)]
        # The class fills the template in, and WKS_FULL_PATH is then the result.
        full = look.var(IMAGE, "WKS_TEMPLATE_PATH")
        pairs.append(("the wks file is ours", full.endswith("yocto-layer/files/wic/" + look.var(IMAGE, "WKS_FILE")), True))
    else:
        pairs += [("both slots", look.var(IMAGE, "USE_REDUNDANT_FLASH_LAYOUT"), "1"), ("a slot's bytes", look.var(IMAGE, "ROOTFSPART_SIZE"), "8589934592"),
                  ("the flash tool's /data", look.var(IMAGE, "IMAGE_TEGRAFLASH_DATA").rsplit("/", 1)[-1], "kentledge-data.ext4"),
                  ("the initramfs' own type", look.var("tegra-minimal-initramfs", "IMAGE_FSTYPES"), look.var("tegra-minimal-initramfs", "INITRAMFS_FSTYPES")),
                  ("read-only", look.var("l4t-launcher-extlinux", "UBOOT_EXTLINUX_KERNEL_ARGS").split()[-1:], ["ro"])]
    check(f"{machine}: the image's values, as the real layers leave them", wrong(pairs))


def recipes(look, machine):
    tegra, rpi = machine.startswith("jetson"), machine.startswith("raspberrypi")
    fetched = lambda name: look.var(name, "SRC_URI").split()
    pairs = [
        ("kernel's options", "file://kentledge.cfg" in fetched("virtual/kernel"), True),
        ("rauc-conf's sources", sorted(f for f in fetched("rauc-conf") if "ca.cert" in f or "keyring" in f), []),
        ("RAUC's D-Bus rule", "file://de.pengutronix.rauc.conf" in fetched("rauc"), True),
        ("rauc-mark-good", "rauc-mark-good" in look.var("rauc", "RRECOMMENDS:rauc"), False),
        ("openssh", sorted(look.var("openssh", "PACKAGECONFIG").split()), ["systemd-sshd-service-mode"]),
        ("stripping", look.var("kentledge", "CARGO_PROFILE_RELEASE_STRIP"), "none"),
        ("cargo_home's prefix map", "cargo_home" in look.var("kentledge", "DEBUG_PREFIX_MAP"), True),
        ("the key is in the checksum", "keyset.json:True" in (look.recipe("kentledge").getVarFlag("do_install", "file-checksums") or ""), True),
        ("RAUC's key is in the checksum", "rauc-ca.pem:True" in (look.recipe("rauc-conf").getVarFlag("do_install", "file-checksums") or ""), True),
    ]
    flag = look.recipe("kentledge-bundle").getVarFlag("do_bundle", "file-checksums") or ""
    pairs.append(("the bundle's keys are in the checksum", [f"{name}:True" in flag for name in ("rauc.key", "rauc.pem")], [True, True]))
    for name in ("kentledge", "rauc-conf", "kentledge-mounts"):
        pairs.append((f"{name} is for this machine", look.var(name, "PACKAGE_ARCH"), look.var(name, "MACHINE_ARCH")))
    if rpi:
        pairs += [("U-Boot's options", [f for f in fetched("u-boot") if "kentledge" in f], ["file://kentledge.cfg", "file://kentledge-watchdog.cfg"]),
                  ("the boot script is ours", "dynamic-layers/raspberrypi/recipes-bsp/rpi-u-boot-scr/files" in look.var("rpi-u-boot-scr", "FILESEXTRAPATHS"), True)]
    if tegra:
        pairs += [("Python in ONNX Runtime", look.var("onnxruntime", "PACKAGECONFIG"), ""),
                  ("CUDA and TensorRT", all(f"-Donnxruntime_USE_{x}=ON" in look.var("onnxruntime", "EXTRA_OECMAKE") for x in ("CUDA", "TENSORRT")), True),
                  ("nv_update_verifier", look.var("tegra-redundant-boot", "SYSTEMD_AUTO_ENABLE"), "disable"),
                  ("/data in the flash layout", "kentledge_data_partition" in look.var("tegra-storage-layout", "do_install"), True),
                  ("preinit in the initramfs", "/usr/lib/kentledge/preinit" in look.var("tegra-minimal-init", "do_install"), True)]
        version = [int(n) for n in look.var("onnxruntime", "PV").split(".")[:2]]
    else:
        source = fetched("onnxruntime-prebuilt")[0]
        pairs.append(("the wheel's address", bool(re.search(r"/packages/[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{60}/onnxruntime-", source)), True))
        version = [int(n) for n in look.var("onnxruntime-prebuilt", "PV").split(".")[:2]]
    pairs.append(("ONNX Runtime is 1.24 or newer", version >= [1, 24], True))
    check(f"{machine}: recipes, with our appends", wrong(pairs))


def main():
    with bb.tinfoil.Tinfoil() as tinfoil:
        tinfoil.prepare(config_only=False)
        look = Look(tinfoil)
        packages(look, sys.argv[1])
        image(look, sys.argv[1])
        recipes(look, sys.argv[1])
    sys.exit(tally.end())


main()
