"""check_metrics.py URL METRICS.md DASHBOARD.json: the page parses, its names are the documented ones, and every name in a
query of the dashboard is among them."""
import json
import re
import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

url, documented, dashboard = sys.argv[1:]
text = urllib.request.urlopen(url, timeout=10).read().decode()
families = {family.name: family for family in text_string_to_metric_families(text)}
samples = {sample.name for family in families.values() for sample in family.samples}
assert sum(len(f.samples) for f in families.values()) > 50, "a page with something on it"

table = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", open(documented).read(), re.M))
types = {f"kentledge_{name}": kind for name, kind in table.items()}
# The parser calls a counter by its name without _total.
seen = {name + ("_total" if family.type == "counter" else ""): family.type for name, family in families.items()}
optional = {"kentledge_temperature_celsius"}
assert seen.keys() - optional == types.keys() - optional, seen.keys() ^ types.keys()
assert all(types[name] == kind for name, kind in seen.items() if name in types), (types, seen)

for family in families.values():
    if family.type == "histogram":
        last = {}
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                key = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
                assert sample.value >= last.get(key, 0), f"{family.name}: buckets grow"
                last[key] = sample.value

queries = [t["expr"] for p in json.load(open(dashboard))["panels"] for t in p["targets"]]
used = {name for query in queries for name in re.findall(r"kentledge_\w+", query)}
known = samples | {f"kentledge_{name}" for name in ("lost_total", "alarm_raised")}
assert used <= known, f"unknown in the dashboard: {used - known}"
rows = [s.value for s in families["kentledge_source_rows"].samples]
assert rows == [500.0], rows
print(f"metrics: {len(families)} families, {sum(len(f.samples) for f in families.values())} samples, {len(queries)} queries resolve")
