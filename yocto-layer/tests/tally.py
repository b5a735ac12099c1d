"""What the layer's checks have found, said as it is found."""
passed, failed = 0, []


def check(what, problems):
    """Says that `what` holds, or each of its problems."""
    global passed
    if problems:
        failed.append(what)
        print(f"FAILED: {what}: " + "; ".join(str(p) for p in problems), flush=True)
    else:
        passed += 1
        print(f"ok: {what}", flush=True)


def end():
    """The code to end with, after a line that counts."""
    print(f"{passed} passed, {len(failed)} failed")
    return bool(failed)
