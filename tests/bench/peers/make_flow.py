"""Writes a Node-RED 4 userDir for N ports: serial in -> function (parse+window+onnxruntime-node) -> mqtt out QoS1."""

import json, os, sys

E = os.environ.get
d = sys.argv[1]
ttys = E("HB_TTYS").split(",")
os.makedirs(d, exist_ok=True)
flow = [
    {"id": "t", "type": "tab", "label": "bench"},
    {
        "id": "b",
        "type": "mqtt-broker",
        "name": "",
        "broker": E("HB_MQTT_HOST", "127.0.0.1"),
        "port": E("HB_MQTT_PORT", "1883"),
        "clientid": E("HB_CLIENT_ID", "nr"),
        "autoConnect": True,
        "usetls": False,
        "protocolVersion": "4",
        "keepalive": "60",
        "cleansession": False,
        "autoUnsubscribe": True,
    },
]
fn = """const f = msg.payload.split(',');
if (f.length !== 10) return;
const seq = parseInt(f[0]); const t = f[1];
const s = context.get('s') || {n: 0, w: []};
const v = new Array(8);
for (let i = 0; i < 8; i++) { v[i] = parseFloat(f[2 + i]); if (Number.isNaN(v[i])) return; }
s.w.push(v); if (s.w.length > 64) s.w.shift(); s.n++; context.set('s', s);
if (s.n < 64 || (s.n - 64) % HOP) return;
const x = new (global.get('F32'))(512);
for (let c = 0; c < 8; c++) for (let k = 0; k < 64; k++) x[c * 64 + k] = s.w[k][c];
const ort = global.get('ort'); const sess = global.get('sess');
sess.run({x: new ort.Tensor('float32', x, [1, 8, 64])}, ['score']).then(r => {
  node.send({payload: `{"seq_last":${seq},"t_last_ns":${t},"score":${r.score.data[0]}}`}); node.done();
}).catch(e => node.error(e));
return;""".replace("HOP", E("HB_HOP", "1"))
for i, t in enumerate(ttys):
    flow += [
        {
            "id": f"sp{i}",
            "type": "serial-port",
            "serialport": t,
            "serialbaud": "115200",
            "databits": "8",
            "parity": "none",
            "stopbits": "1",
            "waitfor": "",
            "newline": "\\n",
            "bin": "false",
            "out": "char",
            "addchar": "",
            "responsetimeout": "10000",
        },
        {"id": f"in{i}", "type": "serial in", "z": "t", "serial": f"sp{i}", "wires": [[f"fn{i}"]]},
        {"id": f"fn{i}", "type": "function", "z": "t", "func": fn, "outputs": 1, "wires": [[f"mq{i}"]], "libs": []},
        {
            "id": f"mq{i}",
            "type": "mqtt out",
            "z": "t",
            "topic": f"{E('HB_TOPIC', 'bench')}/{i}",
            "qos": "1",
            "retain": "false",
            "broker": "b",
            "wires": [],
        },
    ]
json.dump(flow, open(f"{d}/flows.json", "w"), indent=1)
open(
    f"{d}/settings.js", "w"
).write("""const ort = require(process.env.HB_HOME + '/nodered/node_modules/onnxruntime-node');
const g = {ort, F32: Float32Array};  // the function node's sandbox has its own Float32Array, which onnxruntime-node refuses
const opt = process.env.ORT_THREADS ? {intraOpNumThreads: +process.env.ORT_THREADS} : {};
module.exports = {flowFile: 'flows.json', uiPort: 0, uiHost: '127.0.0.1', httpAdminRoot: false, httpNodeRoot: false, disableEditor: true, nodesDir: process.env.HB_HOME + '/nodered/node_modules/node-red-node-serialport',
 telemetry: {enabled: false, updateNotification: false}, externalModules: {autoInstall: false}, functionGlobalContext: g, logging: {console: {level: process.env.NRLOG || 'warn', metrics: false, audit: false}}, editorTheme: {tours: false}};
""")
open(
    f"{d}/run.js", "w"
).write("""// load the model first (functionGlobalContext is synchronous), then start Node-RED in this process
const ort = require(process.env.HB_HOME + '/nodered/node_modules/onnxruntime-node'); const settings = require('./settings.js'); settings.userDir = __dirname;
const opt = process.env.ORT_THREADS ? {intraOpNumThreads: +process.env.ORT_THREADS} : {};
const RED = require(process.env.HB_HOME + '/nodered/node_modules/node-red'); const http = require('http');
ort.InferenceSession.create(process.env.HB_MODEL, opt).then(s => { settings.functionGlobalContext.sess = s;
  const srv = http.createServer((q, r) => r.end()); RED.init(srv, settings); return RED.start(); }).catch(e => { console.error(e); process.exit(1); });
""")
