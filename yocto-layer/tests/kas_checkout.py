"""kas over our files, unmodified, with the mirrors in the place of the network (`tests/oe` calls this)."""
import os
import pathlib
import subprocess
import sys

from tally import check


def addresses(main):
    """The address of each upstream layer in image/kas."""
    found, repository = {}, None
    for path in sorted((main / "image/kas").rglob("*.yml")):
        for line in path.read_text().splitlines():
            if line.startswith("  ") and line[2:3] not in (" ", "-", "") and line.endswith(":"):
                repository = line.strip(" :")
            elif line.startswith("    url: http"):
                found[repository] = line.split(": ", 1)[1].strip()
    return found


def play(main, mirrors, work, layers, pins, machines):
    kas = pathlib.Path(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))) / "kentledge/layer-check"
    lacks = [mirror for mirror in layers.values() if not (mirrors / mirror / "repo").is_dir()]
    if lacks or not (kas / "kas").is_dir():
        print(f"SKIPPED: kas: {'no mirrors of ' + ' '.join(lacks) if lacks else 'yocto-layer/tests/run has not installed it'}", flush=True)
        return
    at = work / "kas"
    subprocess.run(["rm", "-rf", at], check=True)
    at.mkdir()
    subprocess.run(["cp", "-r", work / "kentledge", at / "main"], check=True)
    lines = ["[safe]\n\tdirectory = *\n"]
    for name, address in addresses(main).items():
        lines.append(f'[url "file://{mirrors / layers[name] / "repo"}"]\n\tinsteadOf = {address}\n')
    (at / "gitconfig").write_text("".join(lines))
    env = {**os.environ, "GITCONFIG_FILE": str(at / "gitconfig"), "GIT_CONFIG_GLOBAL": str(at / "gitconfig"), "PYTHONPATH": str(kas), "KAS_CLONE_DEPTH": "1",
           "KAS_WORK_DIR": str(at / "main")}
    for machine, wanted in machines.items():
        out = subprocess.run([sys.executable, "-m", "kas", "checkout", f"image/kas/machine/{machine}.yml"], cwd=at / "main", env=env, capture_output=True,
                             text=True)
        problems = [] if out.returncode == 0 else [(out.stdout + out.stderr)[-800:]]
        for name in {"bitbake", "openembedded-core", "meta-openembedded", "meta-rauc"} | set(wanted) if not problems else ():
            head = subprocess.run(["git", "-c", "safe.directory=*", "-C", at / "main" / name, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
            problems += [f"{name} is at {head or 'nothing'}, not {pins[name]}"] if head != pins[name] else []
        conf = at / "main/build/conf"
        if not problems:
            listed = (conf / "bblayers.conf").read_text()
            problems += [f"bblayers.conf lacks {name}" for name in ("yocto-layer", "meta-rauc", *wanted) if name not in listed]
            problems += [] if f'MACHINE ??= "{machine}"' in (conf / "local.conf").read_text() else ["local.conf names another machine"]
        check(f"kas checkout of {machine}: every layer at its commit", problems)
