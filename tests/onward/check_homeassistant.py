#!/usr/bin/env python3
"""Reads a device's messages as Home Assistant does: its own discovery schemas (voluptuous) and its own templates.

    tests/onward/check_homeassistant.py FILE        lines {"topic": …, "payload": …, "discovery": true}

Needs the real `homeassistant` from PyPI in ~/.cache/kentledge/homeassistant (tests/onward/get-homeassistant); SKIPPED without it.
A description fits when its topic is one that Home Assistant takes, its component's schema takes it, and no member of it is unknown. Each
message on the topics that it names must then give a state that its component takes."""
import asyncio
import collections
import json
import os
import pathlib
import sys
import tempfile

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "kentledge"
PYTHON = CACHE / "homeassistant/bin/python3"


def number(text):
    if text not in ("", "None"):  # "": no news; "None": unknown
        float(text)
    return text not in ("", "None")


def switch(text):
    assert text in ("ON", "OFF", "None"), text
    return text != "None"


async def read(messages):
    from homeassistant.components.mqtt import binary_sensor, discovery, sensor
    from homeassistant.const import __version__
    from homeassistant.core import HomeAssistant
    components = {"sensor": (sensor.DISCOVERY_SCHEMA, number), "binary_sensor": (binary_sensor.DISCOVERY_SCHEMA, switch)}
    hass = HomeAssistant(tempfile.mkdtemp())
    by_topic = collections.defaultdict(list)
    for message in messages:
        by_topic[message["topic"]].append(message["payload"])
    fit, states, known = 0, collections.Counter(), set()
    for message in messages:
        topic = message["topic"]
        if not message.get("discovery") or not topic.endswith("/config"):
            continue
        match = discovery.TOPIC_MATCHER.match(topic.removeprefix("homeassistant/"))
        assert match, f"no discovery topic: {topic}"
        payload = json.loads(message["payload"])
        discovery._replace_topic_base(payload)
        assert "~" not in json.dumps(payload).replace("~/", ""), payload
        schema, state = components[match.group("component")]
        config = schema({**payload, "platform": "mqtt"})
        unknown = set(payload) - set(config) - {"platform", "~"}
        assert not unknown, f"{topic}: Home Assistant does not know {unknown}"
        assert config["unique_id"] not in known, config["unique_id"]
        known.add(config["unique_id"])
        fit += 1

        def render(template, text):
            if template is None:
                return text
            template.hass = hass
            return str(template.async_render_with_possible_json_value(text, error_value="an error"))
        for text in by_topic[config["state_topic"]]:
            shown = render(config.get("value_template"), text)
            is_text = "model" in topic.split("/")[-2]
            states[topic] += bool(shown) if is_text else state(shown)
            assert shown != "an error", (topic, text)
        for text in by_topic[config.get("json_attributes_topic")]:
            assert isinstance(json.loads(render(config["json_attributes_template"], text)), dict), (topic, text)
        for one in config.get("availability") or []:
            for text in by_topic[one["topic"]]:
                assert render(one["value_template"], text) in (one["payload_available"], one["payload_not_available"]), text
    silent = [m["topic"] for m in messages if m.get("discovery") and m["topic"].endswith("/config") and not states[m["topic"]]]
    assert not silent, f"no state for {silent}"
    print(f"MEASURED: Home Assistant {__version__}: {fit} descriptions fit its schemas, {sum(states.values())} states by its templates")
    await hass.async_stop(force=True)


def main():
    if not PYTHON.exists():
        print("SKIPPED: no homeassistant in the cache: tests/onward/get-homeassistant", file=sys.stderr)
        return
    if pathlib.Path(sys.prefix) != PYTHON.parent.parent:
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    with open(sys.argv[1]) as file:
        asyncio.run(read([json.loads(line) for line in file]))


if __name__ == "__main__":
    main()
