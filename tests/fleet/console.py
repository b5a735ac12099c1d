#!/usr/bin/env python3
"""The console in a real Chromium, driven by chromedriver (Debian: chromium, chromium-driver; nothing else is needed).

    tests/fleet/console.py URL [--devices N] [--broker PORT] [--pictures FOLDER] [--rollouts]

Waits until the page shows N devices, then measures and checks: first paint, time until all rows are there, the longest frame while
updates come in and while the list is scrolled, filters, search, keys, the page of a device with its live chart, a narrow screen,
light and dark. With --broker it publishes one device's state and measures how long until the page shows it.
Prints a line of JSON; ends with 1 where a check fails."""

import argparse, base64, json, os, pathlib, socket, subprocess, sys, time, urllib.error, urllib.request


class Browser:
    """One session of chromedriver, by the WebDriver protocol."""

    def __init__(self, traced=False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                urllib.request.urlopen(self.base + "/status", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,900",
                            "--force-color-profile=srgb", "--no-proxy-server"]}
        match = {"goog:chromeOptions": options}
        if traced:
            options["perfLoggingPrefs"] = {"enableNetwork": False, "enablePage": False, "traceCategories": "toplevel"}
            match["goog:loggingPrefs"] = {"performance": "ALL"}
        made = self.call("POST", "/session", {"capabilities": {"alwaysMatch": match}})
        self.session = f"/session/{made['sessionId']}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data=data, method=method, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as why:
            raise RuntimeError(why.read().decode()[:800]) from None

    def open(self, url):
        self.call("POST", self.session + "/url", {"url": url})

    def js(self, script, *args):
        return self.call("POST", self.session + "/execute/sync", {"script": script, "args": list(args)})

    def devtools(self, command, **params):
        return self.call("POST", self.session + "/goog/cdp/execute", {"cmd": command, "params": params})

    def picture(self, folder, name):
        if folder:
            png = base64.b64decode(self.call("GET", self.session + "/screenshot"))
            (folder / f"{name}.png").write_bytes(png)

    def size(self, width, height, scale=1, mobile=False):
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)

    def theme(self, name):
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def key(self, key):
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.call("POST", self.session + "/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]})

    def wait(self, what, script, most_s=60, *args):
        until = time.time() + most_s
        while time.time() < until:
            found = self.js(script, *args)
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"in vain: {what}")

    def close(self):
        try:
            self.call("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait()


FRAMES = """
window.frames_ = {last: performance.now(), worst: 0, n: 0};
const turn = (now) => {
  const f = window.frames_;
  const gap = performance.now() - f.last;
  f.last = performance.now(); f.n += 1;
  if (gap > f.worst) f.worst = gap;
  requestAnimationFrame(turn);
};
requestAnimationFrame(turn);
window.long_ = []; window.errors_ = [];
window.addEventListener("error", (e) => window.errors_.push(e.message));
window.addEventListener("unhandledrejection", (e) => window.errors_.push(String(e.reason)));
new PerformanceObserver((list) => list.getEntries().forEach((e) => window.long_.push(Math.round(e.duration)))).observe({type: "longtask", buffered: true});
"""
WORST = "const w = Math.round(window.frames_.worst); window.frames_.worst = 0; window.frames_.last = performance.now(); return w"
TILE = "return [...document.querySelectorAll('.tile')].find((t) => t.innerText.includes(arguments[0]))?.querySelector('b').textContent.replaceAll(',', '')"
SHOWN = "return document.getElementById('shown').textContent"


def loading(args):
    """The page's longest tasks while all devices load, by the clock and by processor time: what is between them the machine gave to others."""
    browser = Browser(traced=True)
    try:
        browser.open(args.url)
        browser.wait("all devices", f"return Number(document.body.dataset.whole) >= {args.devices}")
        time.sleep(2)
        log = browser.call("POST", browser.session + "/se/log", {"type": "performance"})
    finally:
        browser.close()
    events = [json.loads(entry["message"])["message"].get("params", {}) for entry in log]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    tasks = [e for e in events if "tdur" in e and threads.get((e["pid"], e["tid"])) == "CrRendererMain"]
    ms = lambda e, name: round(e[name] / 1000)
    longest = max(tasks, key=lambda e: e["dur"])
    return {"loading_longest_cpu_ms": max(ms(e, "tdur") for e in tasks), "loading_longest_clock_ms": ms(longest, "dur"),
            "loading_longest_clock_cpu_ms": ms(longest, "tdur"), "loading_above_50_ms": sum(e["dur"] > 50_000 for e in tasks),
            "loading_cpu_above_50_ms": sum(e["tdur"] > 50_000 for e in tasks), "load": os.getloadavg()[0]}


def overview(browser, args, pictures):
    out = {}
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=FRAMES)
    browser.open(args.url)
    browser.wait("all devices", f"return Number(document.body.dataset.whole) >= {args.devices}")
    browser.wait("the list", "return document.querySelectorAll('#list .row:not([hidden])').length > 5")
    out["first_paint_ms"] = round(browser.js("return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1"))
    out["all_rows_ms"] = round(browser.js("return performance.now()"))
    out["rows_in_the_page"] = browser.js("return document.querySelectorAll('#list .row').length")
    out["longest_task_loading_ms"] = browser.js("return Math.max(0, ...window.long_)")
    browser.js(WORST)
    time.sleep(args.watch_s)
    out["worst_frame_updates_ms"] = browser.js(WORST)
    for _ in range(30):
        browser.js("const l = document.getElementById('list'); l.scrollTop += 2000;")
        time.sleep(0.05)
    out["worst_frame_scrolling_ms"] = browser.js(WORST)
    out["longest_task_ms"] = browser.js("return Math.max(0, ...window.long_)")
    browser.js("document.getElementById('list').scrollTop = 0")
    time.sleep(0.4)
    browser.picture(pictures, "overview")
    browser.theme("dark")
    time.sleep(0.3)
    browser.picture(pictures, "overview-dark")
    browser.theme("light")
    return out


def operate(browser, args):
    """By keys alone: search, move, open, back; then filters."""
    devices = int(browser.js(TILE, "devices"))
    assert devices == args.devices, f"{devices} devices"
    browser.key("/")
    browser.wait("the search has the focus", "return document.activeElement.id === 'search'")
    for letter in "pump-00007":
        browser.key(letter)
    browser.wait("one device", "return /^1 of/.test(document.getElementById('shown').textContent)")
    browser.key("\ue007")
    browser.wait("the list has the focus", "return document.activeElement.id === 'list'")
    browser.key("\ue007")
    browser.wait("its page", "return location.hash === '#/device/plant/pump-00007'")
    browser.key("\ue00c")
    browser.wait("back", "return location.hash === '#/'")
    browser.js("document.getElementById('clear').click()")
    browser.wait("all again", "return document.getElementById('shown').textContent.endsWith('devices')")
    offline = int(browser.js(TILE, "offline"))
    browser.js("[...document.querySelectorAll('.tile')].find((t) => t.innerText.includes('offline')).click()")
    shown = browser.wait("the filter", "const t = document.getElementById('shown').textContent; return t.includes(' of ') && t")
    assert shown.split()[0].replace(",", "") == str(offline), f"{shown}: {offline} are offline"
    browser.js("document.getElementById('clear').click()")
    for (width, height) in [(390, 844), (1400, 900)]:
        browser.size(width, height)
        wide = browser.js("return document.documentElement.scrollWidth")
        assert wide <= width, f"the page is {wide} wide on a screen of {width}"


def latency(browser, args):
    """From publish to the screen."""
    took = []
    for i in range(6):
        state = ["offline", "online"][i % 2]
        before = browser.js(TILE, "offline")
        payload = {"v": 1, "ts": None, "clk": "unset", "boot": "b", "state": state, "session": 2}
        began = time.time()
        subprocess.run(["mosquitto_pub", "-V", "5", "-q", "1", "-r", "-h", "127.0.0.1", "-p", str(args.broker),
                        "-t", "kl/plant/pump-00001/up/state", "-m", json.dumps(payload)], check=True)
        browser.wait("the change is shown", "return [...document.querySelectorAll('.tile')].find((t) => t.innerText.includes('offline'))"
                     ".querySelector('b').textContent.replaceAll(',', '') !== arguments[0]", 30, before)
        took.append(round((time.time() - began) * 1000))
    return {"update_ms": sorted(took)}


def device(browser, args, pictures):
    browser.open(args.url + "#/device/" + args.device)
    browser.wait("the device", "return document.querySelector('#device .pill')")
    browser.wait("a chart", "return document.querySelector('#device canvas')?.getAttribute('aria-label')?.startsWith('score')", 40)
    time.sleep(args.chart_s)
    browser.picture(pictures, "device")
    words = browser.js("return document.querySelector('#device canvas').getAttribute('aria-label')")
    browser.js("document.querySelector('#device form').requestSubmit()")
    text = browser.wait("the text to sign", "return [...document.querySelectorAll('#device pre')].map((p) => p.textContent).find((t) => t.includes('iseq'))")
    assert json.loads(text)["to"] == args.device and json.loads(text)["nonce"], text
    browser.js("document.querySelector('#device form').scrollIntoView()")
    browser.picture(pictures, "device-command")
    browser.size(390, 844, 2, True)
    time.sleep(0.5)
    browser.js("scrollTo(0, 0)")
    browser.picture(pictures, "device-phone")
    browser.open(args.url + "#/")
    time.sleep(0.8)
    browser.picture(pictures, "overview-phone")
    browser.size(1400, 900)
    return {"chart": words}


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("url")
    parse.add_argument("--devices", type=int, default=20)
    parse.add_argument("--device", default="plant/pump-00007")
    parse.add_argument("--broker", type=int)
    parse.add_argument("--pictures")
    parse.add_argument("--rollouts", action="store_true")
    parse.add_argument("--watch-s", type=float, default=5)
    parse.add_argument("--chart-s", type=float, default=4)
    args = parse.parse_args()
    pictures = args.pictures and pathlib.Path(args.pictures)
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    browser = Browser()
    try:
        out = {"devices": args.devices, **loading(args), **overview(browser, args, pictures)}
        operate(browser, args)
        if args.broker:
            out.update(latency(browser, args))
        out.update(device(browser, args, pictures))
        if args.rollouts:
            browser.open(args.url + "#/rollouts")
            browser.wait("a bar for a wave", "return document.querySelector('#rollouts .wave .bar i')")
            time.sleep(1)
            browser.picture(pictures, "rollout")
        errors = browser.js("return window.errors_ || []")
        assert not errors, errors
    finally:
        browser.close()
    print(json.dumps(out))


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, RuntimeError) as why:
        sys.exit(f"console.py: {why}")
