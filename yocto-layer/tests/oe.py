#!/usr/bin/env python3
"""The layer on the real upstream layers (`tests/oe` calls this; its head says what is needed).

    oe.py prepare MAIN OE_DIR WORK     layers, the project's checkout and keys in WORK; names what is missing
    oe.py run MAIN WORK [WORD…]        BitBake, not as root; a table in WORK/table.md
    oe.py kas MAIN OE_DIR WORK         kas with mirrors in OE_DIR (tests/kas_checkout.py)
    oe.py boot MAIN WORK CARD          what `tasks` made, started in QEMU (tests/boot.py)
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import boot
import dry
import kas_checkout
import tally
import tasks
from tally import check

# Ours, and the owner and name of the mirror.
LAYERS = {
    "bitbake": "openembedded+bitbake",
    "openembedded-core": "openembedded+openembedded-core",
    "meta-openembedded": "openembedded+meta-openembedded",
    "meta-rauc": "rauc+meta-rauc",
    "meta-raspberrypi": "agherzan+meta-raspberrypi",
    "meta-tegra": "OE4T+meta-tegra",
    "meta-tegra-community": "OE4T+meta-tegra-community",
}
COMMON = ["openembedded-core/meta", "meta-openembedded/meta-oe", "meta-openembedded/meta-python", "meta-openembedded/meta-networking",
          "meta-rauc"]
WIC_COMMIT = "b9e2a2f584^"
MACHINES = {
    "qemuarm64": [], "raspberrypi4-64": ["meta-raspberrypi"], "raspberrypi5": ["meta-raspberrypi"],
    "jetson-orin-nano-devkit-nvme": ["meta-tegra", "meta-tegra-community"],
}
# What our images, and a Jetson's ONNX Runtime, take from meta-openembedded. All else of it is left unread, which saves two thirds
# of the time, unless OE_ALL is set.
NEEDED = ["abseil-cpp", "duktape", "efibootmgr", "efivar", "flatbuffers", "googletest", "gtest", "jsoncpp", "libeigen", "libgpiod", "microsoft-gsl",
          "nlohmann-json", "polkit", "protobuf", "python3-cmake", "python3-distro", "python3-kconfiglib", "python3-ninja", "python3-ninja-syntax",
          "python3-pybind11", "python3-scikit-build", "python3-scikit-build-core", "re2"]
# The second one: the BSPs' appends to what is left unread.
MASK = r"^(?!.*/(%s)[_./]).*/(meta-openembedded/meta-(oe|python|networking)/(recipes|dynamic)|(external|dynamic-layers)/[a-z-]+/.*bbappend$)" % "|".join(
    [*NEEDED, "yocto-layer"])

# A layer of which nothing is read is no fault then. A recipe that is added to NEEDED does not make BitBake read all others again.
UNREAD = f'BBMASK = "{MASK}"\nBB_HASHCONFIG_IGNORE_VARS:append = " BBMASK BB_NUMBER_PARSE_THREADS"\n' + "".join(
    f'BBFILE_PATTERN_IGNORE_EMPTY_{name} = "1"\n' for name in ("openembedded-layer", "meta-python", "networking-layer"))


def git(at, *words):
    return subprocess.run(["git", "-c", "safe.directory=*", "-C", str(at), *words], capture_output=True, text=True, check=True).stdout.strip()


def pins(main):
    """The commits in image/kas, by repository."""
    found = {}
    for path in sorted((main / "image/kas").rglob("*.yml")):
        repository = None
        for line in path.read_text().splitlines():
            if match := re.match(r"  ([\w-]+):$", line):
                repository = match[1]
            elif match := re.match(r"    commit: (\w+)$", line):
                found[repository] = match[1]
    return found


def prepare(main, upstream, work):
    layers = work / "layers"
    layers.mkdir(parents=True, exist_ok=True)
    (work / "home").mkdir(exist_ok=True)
    wanted = pins(main)
    for name, mirror in LAYERS.items():
        at, bare = layers / name, upstream / mirror / "repo"
        if (upstream / name).is_dir():
            if at.is_symlink():
                at.unlink()
            if not at.exists():
                at.symlink_to((upstream / name).resolve())
            head = git(at, "rev-parse", "HEAD")
            if head != wanted.get(name, head):
                print(f"note: {name} is at {head[:10]}, image/kas names {wanted[name][:10]}")
        elif bare.is_dir():
            if not at.exists():
                git(layers, "clone", "--quiet", "--shared", "--no-checkout", bare, name)
            try:
                git(at, "checkout", "--quiet", wanted[name])
            except subprocess.CalledProcessError as why:
                sys.exit(f"tests/oe: {bare} does not have the commit {wanted[name]} of image/kas: {why.stderr.strip()}")
        else:
            sys.exit(f"tests/oe: OE_DIR has no {name}: expected a checkout {upstream / name} or a mirror {bare}")
        if name.startswith("meta-") and not list(at.glob("conf/layer.conf")) + list(at.glob("*/conf/layer.conf")):
            sys.exit(f"tests/oe: {at} is not a layer: it has no conf/layer.conf")
    # wic as it was when it left oe-core (2026-04): the code of its own repository.
    core, wic = layers / "openembedded-core", work / "wic"
    if not (wic / "scripts/wic").exists():
        try:
            wic.mkdir(exist_ok=True)
            with subprocess.Popen(["git", "-c", "safe.directory=*", "-C", core, "archive", WIC_COMMIT, "scripts/wic", "scripts/lib"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as archive:
                subprocess.run(["tar", "-x", "-C", wic], stdin=archive.stdout, check=True, stderr=subprocess.DEVNULL)
        except subprocess.CalledProcessError:
            pass
    # U-Boot at the recipe's version. A mirror may lack a large file of a test that is not needed.
    recipe = next(core.glob("meta/recipes-bsp/u-boot/u-boot_*.bb"), None)
    mirror, source = upstream / "u-boot+u-boot/repo", work / "u-boot"
    if recipe and mirror.is_dir() and not (source / "Makefile").exists():
        source.mkdir(exist_ok=True)
        tag = "v" + recipe.stem.split("_")[1]
        subprocess.run(f"git -c safe.directory='*' --git-dir={mirror} archive {tag} -- . ':!lib/mbedtls/external' ':!doc' ':!test/py' 2>/dev/null"
                       f" | tar -x -C {source} 2>/dev/null", shell=True, check=False)
    # What is checked is what is committed and what lies in the working tree: all files that git does not ignore.
    ours = work / "kentledge"
    subprocess.run(["rm", "-rf", ours], check=True)
    git(work, "clone", "--quiet", "--shared", main, ours)
    subprocess.run(f"git -c safe.directory='*' -C {main} ls-files -z -co --exclude-standard -- yocto-layer systemd udev image Cargo.lock "
                   f"| xargs -0 sh -c 'cd {main} && for f; do [ ! -e \"$f\" ] || printf \"%s\\0\" \"$f\"; done' - "
                   f"| tar -C {main} -c --null -T - | tar -C {ours} -x", shell=True, check=True)
    # Crates that cargo has here already; the recipe's fetcher looks at their checksums.
    downloads = work / "downloads"
    downloads.mkdir(exist_ok=True)
    for crate in pathlib.Path(os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo"))).glob("registry/cache/*/*.crate"):
        if not (downloads / crate.name).exists():
            shutil.copy(crate, downloads)
    if not (work / "keys").exists():
        subprocess.run([main / "image/keys/make", work / "keys"], check=True, stdout=subprocess.DEVNULL)


class Build:
    """A build folder of one machine, with BitBake's server kept between its commands."""

    def __init__(self, work, name, machine, layers, distro="kentledge", more=None, bitbake=None):
        self.work, self.top = work, work / "build" / name
        (self.top / "conf").mkdir(parents=True, exist_ok=True)
        threads = int(os.environ.get("OE_THREADS") or 2)
        # What a dry run starts ends at once: most of its time is waiting for the next one.
        tasks_at_once = 8 * threads if bitbake else threads
        paths = " ".join(str(work / "layers" / layer) for layer in layers)
        ours = f" {work}/kentledge/yocto-layer" if distro == "kentledge" else ""
        (self.top / "conf/bblayers.conf").write_text(f'BBPATH = "${{TOPDIR}}"\nBBFILES ?= ""\nBBLAYERS = "{paths}{ours}"\n')
        (self.top / "conf/local.conf").write_text(
            f'DISTRO = "{distro}"\nMACHINE = "{machine}"\nBB_NO_NETWORK = "1"\nKENTLEDGE_KEYS ?= "{work}/keys"\n'
            f'BB_NUMBER_THREADS = "{tasks_at_once}"\nBB_NUMBER_PARSE_THREADS = "{threads}"\n'
            + (more if more is not None else "" if os.environ.get("OE_ALL") else UNREAD))
        core, bitbake = work / "layers/openembedded-core", bitbake or work / "layers/bitbake"
        self.env = {**os.environ, "BUILDDIR": str(self.top), "BB_SERVER_TIMEOUT": "300", "PYTHONPATH": f"{bitbake}/lib",
                    "PATH": f"{core}/scripts:{bitbake}/bin:{os.environ['PATH']}"}

    def run(self, log, *words):
        """Runs a command; its exit code and what it printed, which is also in a file of the build folder."""
        for _ in range(3):
            out = subprocess.run(words, cwd=self.top, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
            # BitBake's client waits 60 s for its server, which is not long where the machine has other work.
            if "Timeout while waiting for a reply" not in out.stdout and "Unable to connect to bitbake server" not in out.stdout:
                break
        (self.top / f"{log}.log").write_text(out.stdout)
        return out.returncode, out.stdout


def complaints(text):
    """Errors, and warnings; those about this machine's distribution, and that a dry run fetches no C library for tools, are left out."""
    usual = ("has not been validated", "Host distribution", "uninative")
    lines = [line for line in text.splitlines() if line.startswith(("ERROR:", "WARNING:")) and not any(words in line for words in usual)]
    return [line[:300] for line in lines]


def machine(work, name, with_dry_run):
    began = time.monotonic()
    build = Build(work, name, name, COMMON + MACHINES[name], bitbake=dry.bitbake(work) if with_dry_run else None)
    code, text = build.run("parse", "bitbake", "-p")
    recipes = re.search(r"Parsing of (\d+) \.bb files complete \((\d+) cached, (\d+) parsed\). (\d+) targets, .*?(\d+) errors", text)
    check(f"{name}: BitBake parses all layers without an error", complaints(text) or ([] if code == 0 else [text[-600:]]))
    if code != 0:
        return
    row = {"machine": name, "recipes": recipes[1] if recipes else "?", "errors": recipes[5] if recipes else "?"}
    # What a dry run sees, too: every task of image and bundle, what each waits for, no circle. A dry run (word `dry-run`) reads each
    # recipe again, as a build does, and goes through the tasks.
    code, text = build.run("graph", "bitbake", "-g", "kentledge-image", "kentledge-bundle")
    if code == 0:
        row["graph"] = len((build.top / "pn-buildlist").read_text().split())
        row["tasks"] = len(re.findall(r'^"[^"]*" \[label=', (build.top / "task-depends.dot").read_text(), re.M))
    check(f"{name}: the graph of image and bundle resolves: {row.get('tasks')} tasks", [] if code == 0 else complaints(text) or [text[-600:]])
    warnings = [line for line in complaints(text) if line.startswith("WARNING")]
    row["warnings"] = len(warnings)
    check(f"{name}: no warning", warnings)
    if "graph" not in row:
        return
    code, text = build.run("look", sys.executable, str(pathlib.Path(__file__).with_name("look.py")), name)
    print("\n".join(line for line in text.splitlines() if re.match(r"(ok|FAILED): ", line)), flush=True)
    passed = len(re.findall(r"^ok: ", text, re.M))
    tally.passed += passed
    check(f"{name}: {passed} looks at the real layers", [] if code == 0 else [line for line in text.splitlines() if line.startswith("FAILED")] or [text[-1500:]])
    packages = re.search(r"(\d+) packages, (\d+) without", text)
    row["packages"], row["missing"] = (packages[1], packages[2]) if packages else ("?", "?")
    row["minutes"], row["seen"] = f"{(time.monotonic() - began) / 60:.0f}", git(work / "kentledge", "rev-parse", "--short=10", "HEAD")
    (build.top / "row.json").write_text(json.dumps(row))
    # By the same server: a new one takes its own first configuration for another one, and reads all recipes again.
    if with_dry_run:
        dry_run(build, name)
    build.run("end", "bitbake", "-m")


def dry_run(build, name):
    """BitBake goes through every task of image and bundle without running it (tests/dry.py)."""
    began = time.monotonic()
    code, text = build.run("dry-run", "bitbake", "-n", "kentledge-image", "kentledge-bundle")
    tasks_run = re.search(r"Attempted (\d+) tasks", text)
    check(f"{name}: dry run of image and bundle: {tasks_run[1] if tasks_run else 'no'} tasks", [] if code == 0 else complaints(text) or [text[-600:]])
    check(f"{name}: no warning in the dry run", [line for line in complaints(text) if line.startswith("WARNING")])
    row = build.top / "row.json"
    if code == 0 and tasks_run and row.exists():
        row.write_text(json.dumps({**json.loads(row.read_text()), "dry": tasks_run[1],
                                   "dry_minutes": f"{(time.monotonic() - began) / 60:.0f}"}))


def wic(work):
    """wic over both wks files (tests/wic.py)."""
    if not (work / "wic/scripts/wic").exists():
        print(f"SKIPPED: wic: openembedded-core in OE_DIR does not hold {WIC_COMMIT}, the last commit with wic in it", flush=True)
        return
    (work / "cards").mkdir(exist_ok=True)
    out = subprocess.run([sys.executable, str(pathlib.Path(__file__).with_name("wic.py")), work / "kentledge/yocto-layer", work / "wic",
                          work / "layers/bitbake", work / "cards"], capture_output=True, text=True)
    print(out.stdout.rsplit("\n", 2)[0], flush=True)
    check("wic makes both cards", [] if out.returncode == 0 else [line for line in out.stdout.splitlines() if line.startswith("FAILED")] or [out.stderr[-800:]])


def uboot(work):
    """U-Boot's own configuration of a Raspberry Pi with our fragments over it: each option must be in what comes out."""
    source, out = work / "u-boot", work / "u-boot-out"
    missing = [tool for tool in ("aarch64-linux-gnu-gcc", "bison", "flex", "make") if not shutil.which(tool)]
    if missing or not (source / "Makefile").exists():
        print(f"SKIPPED: U-Boot's options: {' '.join(missing) or 'OE_DIR has no mirror u-boot+u-boot with the tag of the recipe'}", flush=True)
        return
    fragments = sorted((work / "kentledge/yocto-layer/dynamic-layers/raspberrypi/recipes-bsp/u-boot/files").glob("*.cfg"))
    make = ["make", "-s", "CROSS_COMPILE=aarch64-linux-gnu-", f"O={out}"]
    steps = [[*make, "rpi_arm64_defconfig"], ["scripts/kconfig/merge_config.sh", "-m", "-O", out, out / ".config", *fragments], [*make, "olddefconfig"]]
    for step in steps:
        done = subprocess.run(step, cwd=source, capture_output=True, text=True, env={**os.environ, "KCONFIG_CONFIG": str(out / ".config")})
        if done.returncode:
            check("U-Boot is configured", [done.stderr[-800:]])
            return
    text = (out / ".config").read_text()
    wanted = [line for path in fragments for line in path.read_text().splitlines() if line.startswith("CONFIG_")]
    has = lambda line: f"# {line[:-2]} is not set" in text or f"{line[:-2]}=" not in text if line.endswith("=n") else f"\n{line}\n" in text
    check(f"U-Boot's configuration has our {len(wanted)} options", [line for line in wanted if not has(line)])


def real_tasks(work):
    """Real tasks of our recipes (tests/tasks.py)."""
    name = "raspberrypi4-64"
    layers = [*COMMON, *MACHINES[name], work / "kentledge/yocto-layer/tests/standins/tools"]
    tasks.run(work, lambda more: Build(work, "tasks", name, layers, more=more), complaints)


def check_layer(work):
    """yocto-check-layer adds the layer itself, to oe-core and meta-oe without a distro of ours."""
    build = Build(work, "check-layer", "qemuarm64", ["openembedded-core/meta", "meta-openembedded/meta-oe"], "nodistro")
    code, text = build.run("check-layer", "yocto-check-layer", f"{work}/kentledge/yocto-layer", "--no-auto", "--no-auto-dependency",
                           "--dependency", f"{work}/layers/meta-openembedded/meta-oe")
    ran = re.search(r"Ran (\d+) tests?", text)
    verdicts = re.findall(r"^INFO: (?:.* )?(test_\w+)[^\n]*\.\.\. *(ok|FAIL|ERROR|skipped)", text, re.M)
    (work / "check-layer.txt").write_text(text)
    problems = [] if code == 0 else [line for line in text.splitlines() if re.search(r"FAIL|ERROR", line)][:10] or [text[-1500:]]
    # A layer that is configured already is skipped, with success.
    if not ran or int(ran[1]) < 5 or "Skipping" in text:
        problems.append(f"it ran {ran[1] if ran else 0} tests only")
    check(f"yocto-check-layer: {ran[1] if ran else 0} tests {' '.join('='.join(v) for v in verdicts)}", problems)


def run(main, work, words):
    chosen = [name for name in MACHINES if name in words] or (list(MACHINES) if not words or "dry-run" in words else [])
    for name in chosen:
        (work / "build" / name / "row.json").unlink(missing_ok=True)
        machine(work, name, "dry-run" in words)
    if not words or "wic" in words:
        wic(work)
    if not words or "u-boot" in words:
        uboot(work)
    if not words or "tasks" in words:
        real_tasks(work)
    if not words or "check-layer" in words:
        check_layer(work)
    # Machines may be run one by one: a row says of which commit of ours it is.
    columns = {"machine": "machine", "recipes": "recipes parsed", "errors": "errors", "graph": "recipes in the image's graph",
               "tasks": "tasks of image and bundle", "dry": "dry run", "dry_minutes": "its minutes", "packages": "packages",
               "missing": "names without a provider", "warnings": "warnings", "minutes": "minutes", "seen": "our commit"}
    lines = ["layers: " + ", ".join(f"{name} {git(work / 'layers' / name, 'rev-parse', '--short=10', 'HEAD')}" for name in LAYERS), "",
             "| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    for path in (work / "build" / name / "row.json" for name in MACHINES):
        if path.exists():
            row = json.loads(path.read_text())
            lines.append("| " + " | ".join(str(row.get(key, "not seen")) for key in columns) + " |")
    (work / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sys.exit(tally.end())


if __name__ == "__main__":
    main_at = pathlib.Path(sys.argv[2]).resolve()
    if sys.argv[1] == "boot":
        work_at, card = (pathlib.Path(word).resolve() for word in sys.argv[3:5])
        made = work_at / "build/tasks/tmp/deploy"
        conf = sorted(made.glob("deb/*/rauc-conf_*.deb"))
        lacks = [str(path) for path in (made / "images/raspberrypi4-64/u-boot.bin", card, work_at / "wic/scripts/wic") if not path.exists()]
        if lacks or not conf:
            print(f"SKIPPED: a start in QEMU: {' '.join(lacks) or 'no package rauc-conf'} is missing (words `tasks`; image/build raspberrypi4 test)")
            sys.exit(0)
        subprocess.run(["dpkg-deb", "-x", conf[-1], work_at / "board/conf"], check=True)
        boot.play(main_at, work_at, made / "images/raspberrypi4-64", work_at / "board/conf/etc/fw_env.config", card)
        sys.exit(tally.end())
    elif sys.argv[1] == "kas":
        kas_checkout.play(main_at, *(pathlib.Path(word).resolve() for word in sys.argv[3:5]), LAYERS, pins(main_at), MACHINES)
        sys.exit(tally.end())
    elif sys.argv[1] == "prepare":
        prepare(main_at, pathlib.Path(sys.argv[3]).resolve(), pathlib.Path(sys.argv[4]).resolve())
    else:
        run(main_at, pathlib.Path(sys.argv[3]).resolve(), sys.argv[4:])
