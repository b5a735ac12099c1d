"""Real tasks of our own recipes, by the real classes, with this machine's tools under oe-core's names (`tests/oe` calls this).

No compiler, C library or tool of oe-core is built. So what is asked of a package by its files is not looked at here
(`file-rdeps`, `build-deps`): the recipes of the C library are not made. All else is: fetch, unpack, compile, install, package, the checks of
package QA, a .deb, licences, an SBOM. Crates and the wheel come from registries or from what lies in WORK/downloads.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess

from tally import check

# Whose tasks are run; all other names count as provided.
OURS = ["rauc-conf", "kentledge-mounts", "kentledge-models", "packagegroup-kentledge", "onnxruntime-prebuilt", "kentledge"]
RPI = ["rpi-u-boot-scr", "u-boot"]
CROSS = "gcc g++ cpp ld as ar nm objcopy objdump strip ranlib readelf strings gcc-ar gcc-nm gcc-ranlib".split()
TOOLS = ("cargo rustc quilt dpkg-deb dpkg-query dpkg-architecture mkimage pkg-config pseudo unsquashfs mksquashfs make unzip bison flex bc dtc swig m4 "
         "rauc openssl zstd dwarfsrcfiles merge_config.sh").split()

WRAPPER = """#!/bin/bash
# Debian's cross compiler under oe-core's name: with its own sysroot, without what only a newer gcc knows.
name=${0##*/}
words=()
for word; do
    case $word in --sysroot=* | -fcanon-prefix-map | -mbranch-protection=* | -fhardened) ;; *) words+=("$word") ;; esac
done
exec "/usr/bin/aarch64-linux-gnu-${name#aarch64-oe-linux-}" "${words[@]}"
"""

CONFIG = """
PACKAGE_CLASSES = "package_deb"
HOSTTOOLS += "{tools}"
ASSUME_PROVIDED += "^(?!({names}|u-boot-default-script|virtual/bootloader|pseudo-native|virtual/fakeroot-native|rauc-native|pieces-image)$).*$"
FAKEROOTCMD = "/usr/bin/pseudo"
FAKEROOTBASEENV = "PSEUDO_PREFIX=/usr PSEUDO_DISABLED=1 PYTHONDONTWRITEBYTECODE=1"
FAKEROOTENV = "PSEUDO_PREFIX=/usr PSEUDO_LOCALSTATEDIR=${{PSEUDO_LOCALSTATEDIR}} PSEUDO_PASSWD=${{PSEUDO_PASSWD}} PSEUDO_NOSYMLINKEXP=1 \
PSEUDO_IGNORE_PATHS=/usr/,/etc/,/lib,/dev/,/proc,{work}/layers,{work}/tools,{work}/kentledge,{work}/home,${{T}},${{TOPDIR}}/cache,\
${{TMPDIR}}/sstate-control,${{TMPDIR}}/stamps,${{WORKDIR}}/recipe-sysroot,${{WORKDIR}}/sources,${{WORKDIR}}/build PSEUDO_DISABLED=0"
RPMDEPS:forcevariable = "/usr/lib/rpm/rpmdeps --alldeps --define '__font_provides %{{nil}}'"
RUST_HOST_SYS:class-target = "aarch64-unknown-linux-gnu"
RUST_TARGET_SYS:class-target = "aarch64-unknown-linux-gnu"
RUSTLIB:class-target = ""
# What is only looked at is not optimised over all crates at once: that takes minutes.
export CARGO_BUILD_JOBS = "{threads}"
export CARGO_PROFILE_RELEASE_LTO = "off"
export CARGO_PROFILE_RELEASE_CODEGEN_UNITS = "16"
export CARGO_PROFILE_RELEASE_OPT_LEVEL = "0"
# A wheel that is not in WORK/downloads is fetched, by its content's address.
BB_NO_NETWORK:pn-onnxruntime-prebuilt = "0"
INSANE_SKIP:append:pn-kentledge = " build-deps file-rdeps"
INSANE_SKIP:append:pn-onnxruntime-prebuilt = " build-deps file-rdeps"
# What these recipes' users and groups wait for is not made.
USERADDSETSCENEDEPS:forcevariable = ""
INHERIT += "externalsrc"
EXTERNALSRC:pn-u-boot = "{work}/u-boot"
EXTERNALSRC_BUILD:pn-u-boot = "${{WORKDIR}}/build"
BB_HASHSERVE = ""
BB_SIGNATURE_HANDLER = "OEBasicHash"
PARALLEL_MAKE = "-j{threads}"
DL_DIR = "{work}/downloads"
BBMASK = "^(?!.*/({names})[_.])(?!.*/standins/tools/).*\\.(bb|bbappend)$"
""" + "".join(f'BBFILE_PATTERN_IGNORE_EMPTY_{name} = "1"\n' for name in ("openembedded-layer", "meta-python", "networking-layer", "rauc", "core"))


def tools(work):
    """A folder with this machine's tools under the names that oe-core's classes ask for; what cannot be had."""
    at = work / "tools"
    at.mkdir(exist_ok=True)
    for tool in CROSS:
        path = at / f"aarch64-oe-linux-{tool}"
        path.write_text(WRAPPER)
        path.chmod(0o755)
    config = at / "merge_config.sh"
    config.write_text(f'#!/bin/sh\nexec {work}/u-boot/scripts/kconfig/merge_config.sh "$@"\n')
    config.chmod(0o755)
    source = work / "layers/openembedded-core/meta/recipes-devtools/dwarfsrcfiles/files/dwarfsrcfiles.c"
    if not (at / "dwarfsrcfiles").exists():
        subprocess.run(["gcc", source, "-o", at / "dwarfsrcfiles", "-lelf", "-ldw"], check=False, capture_output=True)
    path = f"{at}:{os.environ['PATH']}"
    return path, [tool for tool in (*TOOLS, "aarch64-linux-gnu-gcc", "/usr/lib/rpm/rpmdeps") if not shutil.which(tool, path=path)]


def packages(build):
    """The .deb files that were made, by name."""
    return {path.name.split("_")[0]: path for path in (build.top / "tmp/deploy/deb").rglob("*.deb")}


def contents(deb):
    out = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True).stdout
    return {line.split()[5].removeprefix("."): line.split()[:2] for line in out.splitlines()}


def run(work, make_build, complaints):
    """Runs them for a Raspberry Pi 4; `make_build` and `complaints` are oe.py's."""
    path, missing = tools(work)
    if missing:
        print(f"SKIPPED: real tasks: {' '.join(missing)} cannot be found", flush=True)
        return
    names = [*(RPI if (work / "u-boot/Makefile").exists() else []), *OURS]
    cross = [f"aarch64-oe-linux-{tool}" for tool in CROSS]
    build = make_build(CONFIG.format(work=work, threads=os.environ.get("OE_THREADS") or 2, names="|".join([*names, "kentledge-bundle"]),
                                     tools=" ".join([*TOOLS, *cross])))
    build.env["PATH"] = f"{path}:{build.env['PATH']}"
    for group in (RPI if RPI[0] in names else [], OURS[:-1], OURS[-1:]):
        words = [f"{name}:do_{task}" for name in group for task in
                 (("deploy",) if name == "rpi-u-boot-scr" else ("package_write_deb", "package_qa", "populate_lic", "create_spdx"))]
        if "u-boot" in group:
            words.append("u-boot:do_deploy")
        if not words:
            continue
        code, text = build.run(f"tasks-{group[-1]}", "bitbake", "-k", *words)
        said = [line for line in complaints(text) if line.startswith("ERROR") or any(name in line for name in names)]
        check(f"real tasks of {', '.join(group)}", said or ([] if code == 0 else [text[-1500:]]))
    packed(work, packages(build))
    bundle(work, build, complaints)
    sbom(work, build, complaints)


def packed(work, debs):
    """What the packages hold: whose files, none twice, none with the build's own folders in it."""
    owners, problems = {}, []
    for name, deb in sorted(debs.items()):
        # Not in the image: it has a file that is rauc-conf's there (tests/look.py).
        if name.startswith("u-boot"):
            continue
        for path, (mode, owner) in contents(deb).items():
            if not path.endswith("/"):
                problems += [f"{path} is in {name} and {owners[path]}"] if path in owners else []
                owners[path] = name
            problems += [f"{name}: {path} belongs to {owner}"] if owner != "root/root" else []
            problems += [f"{name}: {path}: {mode}"] if "s" in mode[3::3] else []
    wanted = {"/usr/bin/kentledge": "kentledge", "/usr/lib/kentledge/keyset.json": "kentledge", "/usr/lib/kentledge/preinit": "kentledge",
              "/usr/lib/systemd/system/kentledge.service": "kentledge", "/usr/lib/systemd/system/boot.mount": "kentledge-mounts",
              "/etc/rauc/system.conf": "rauc-conf", "/etc/rauc/keyring.pem": "rauc-conf", "/etc/fw_env.config": "rauc-conf",
              "/usr/lib/kentledge/libonnxruntime.so.1.31.1": "onnxruntime-prebuilt"}
    problems += [f"{path} is in {owners.get(path, 'no package')}" for path, name in wanted.items() if name in debs and owners.get(path) != name]
    check(f"{len(owners)} files in {len(debs)} packages, each once and root's", problems)


def bundle(work, build, complaints):
    """A bundle by the real class, over a root of the packages that were made; signed, verified, for this board."""
    root, deploy = work / "root", build.top / "tmp/deploy/images/raspberrypi4-64"
    shutil.rmtree(root, ignore_errors=True)
    for name, deb in packages(build).items():
        if not name.endswith(("-dbg", "-dev", "-src", "-staticdev")) and "u-boot" not in name:
            subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    deploy.mkdir(parents=True, exist_ok=True)
    image = deploy / "kentledge-image-raspberrypi4-64.rootfs.ext4"
    image.unlink(missing_ok=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, image, "256M"], check=True)
    code, text = build.run("tasks-kentledge-bundle", "bitbake", "kentledge-bundle:do_deploy")
    made = deploy / "kentledge-bundle-raspberrypi4-64.raucb"
    problems = [] if code == 0 else complaints(text) or [text[-1500:]]
    if not problems:
        # As the device verifies it: by the keyring and its rules in rauc-conf. (All of the file needs a newer RAUC than Debian 12's.)
        text = (root / "etc/rauc/system.conf").read_text()
        conf = work / "root-system.conf"
        conf.write_text("[system]\ncompatible=" + re.search(r"^compatible=(.*)$", text, re.M)[1] + "\nbootloader=noop\n"
                        + re.search(r"^\[keyring\].*?(?=^\[|\Z)", text, re.M | re.S)[0].replace("/etc/rauc/", f"{root}/etc/rauc/"))
        out = subprocess.run(["rauc", "--conf", conf, "info", made], capture_output=True, text=True)
        problems = [] if out.returncode == 0 else [out.stderr[-600:]]
        problems += [f"no `{words}` in it" for words in ("kentledge-raspberrypi4-64", "verity", "[rootfs]") if words.lower() not in out.stdout.lower()]
    check("a bundle of these packages is signed for this board and verified", problems)


def sbom(work, build, complaints):
    """SBOM and licence manifest of a root with these packages, by oe-core's image classes (standins/tools, pieces-image)."""
    code, text = build.run("tasks-pieces-image", "bitbake", "pieces-image:do_create_image_sbom_spdx")
    check("oe-core makes an SBOM and a licence manifest of these packages", [] if code == 0 else complaints(text) or [text[-1500:]])
    if code != 0:
        return
    made = build.top / "tmp/deploy/images/raspberrypi4-64/pieces-image-raspberrypi4-64.rootfs.spdx.json"
    graph = json.loads(made.read_text())["@graph"]
    installed = sorted(one["name"] for one in graph if one["type"] == "software_Package" and one.get("software_primaryPurpose") == "install")
    # A wheel, a crate: what was downloaded, with its address and its digest.
    sources = {one["software_downloadLocation"]: one.get("verifiedUsing") for one in graph if one.get("software_primaryPurpose") == "source"
               and one.get("software_downloadLocation", "").startswith("https:")}
    problems = [f"{name} is not in it" for name in OURS if name in packages(build) and name not in installed and not name.startswith("packagegroup")]
    problems += [f"{place} has no digest" for place, digest in sources.items() if not digest] or ([] if sources else ["no source"])
    check(f"SBOM: {made.stat().st_size >> 10} KiB, {len(graph)} elements, packages {' '.join(installed)}; {len(sources)} downloads with their digests", problems[:5])
    manifest = next((build.top / "tmp/deploy/licenses").glob("*/pieces-image-*/license.manifest"))
    licences = dict(re.findall(r"PACKAGE NAME: (.*)\n.*\n.*\nLICENSE: (.*)\n", manifest.read_text()))
    check("licence manifest: " + ", ".join(f"{name} {licence}" for name, licence in licences.items()),
          [f"{name} has none" for name in installed if not licences.get(name)])
