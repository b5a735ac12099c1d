"""A dry run that reads each recipe once (`tests/oe` calls this).

BitBake starts a process for each task, which reads the task's recipe again: some 4,000 times for 300 recipes. In a copy of
BitBake its worker reads each recipe once and hands it to the processes of all of its tasks. All else is BitBake's own: the graph, the
signatures, and the comparison of each recipe, read again, with the first reading (`basehash value changed`).
"""
import shutil

# A line of BitBake's worker, and what stands there instead. `read_once` runs before the fork, so that the next task finds the recipe.
# A recipe that cannot be read is read again by the task, which reports it.
CHANGES = {
    "def fork_off_task(cfg, data, databuilder, workerdata, extraconfigdata, runtask):\n": '''
recipes = {}

def read_once(databuilder, workerdata, extraconfigdata, runtask):
    fn = runtask['fn']
    if fn not in recipes:
        base = databuilder.mcdata[bb.cache.virtualfn2realfn(fn)[2]]
        base.setVar("BB_WORKERCONTEXT", "1")
        for name, value in {"BUILDNAME": workerdata["buildname"], "DATE": workerdata["date"], "TIME": workerdata["time"], **extraconfigdata}.items():
            base.setVar(name, value)
        bb.parse.siggen.set_taskdata(workerdata["sigdata"])
        if "newhashes" in workerdata:
            bb.parse.siggen.set_taskhashes(workerdata["newhashes"])
        try:
            recipes[fn] = databuilder.parseRecipe(fn, runtask['appends'], runtask['layername'])
        except Exception:
            recipes[fn] = None
    return recipes[fn]

def fork_off_task(cfg, data, databuilder, workerdata, extraconfigdata, runtask):
''',
    "        pid = os.fork()\n    except OSError as e:\n": '''
        recipe = read_once(databuilder, workerdata, extraconfigdata, runtask)
        pid = os.fork()
    except OSError as e:
''',
    "                the_data = databuilder.parseRecipe(fn, appends, layername)\n": '''
                if recipe is None:
                    the_data = databuilder.parseRecipe(fn, appends, layername)
                else:
                    the_data = recipe.createCopy()
                    the_data.setVar("BB_TASKDEPDATA", taskdepdata)
                    the_data.setVar("BB_CURRENTTASK", taskname.replace("do_", ""))
''',
}


def bitbake(work):
    """The copy, made anew from the layers' BitBake; an error if its worker is not the one that is known here."""
    at = work / "bitbake-dry"
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(work / "layers/bitbake", at, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    worker = at / "bin/bitbake-worker"
    text = worker.read_text()
    for before, after in CHANGES.items():
        if text.count(before) != 1:
            raise ValueError(f"bitbake-worker has {text.count(before)} times, not once: {before.strip()}")
        text = text.replace(before, after.lstrip("\n"))
    worker.write_text(text)
    return at
