"""Boots the quick image beside a broker and a simulated pump. See image/run."""
import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE = ROOT / "target/image/qemu-test"
FAULT_S = (45, 60)  # of the pump's time, once the device has learnt what is normal


def call(*words, **more):
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def certificates(to):
    call("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650",
         "-subj", "/CN=bench", "-keyout", to / "ca.key", "-out", to / "ca.pem", "-addext", "basicConstraints=critical,CA:TRUE")
    call("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=broker",
         "-keyout", to / "server.key", "-out", to / "server.csr")
    (to / "ext").write_text("subjectAltName=IP:10.0.2.2\n")
    call("openssl", "x509", "-req", "-in", to / "server.csr", "-CA", to / "ca.pem", "-CAkey", to / "ca.key", "-days", "3650",
         "-extfile", to / "ext", "-out", to / "server.pem")


def pump(path, began, say):
    """20 rows a second; from FAULT_S on the bearing shakes."""
    while True:
        try:
            line = socket.socket(socket.AF_UNIX)
            line.connect(str(path))
            break
        except OSError:
            time.sleep(0.2)
    i, odd_before = 0, False
    while True:
        # Learning begins with the first row that the daemon reads.
        t = time.monotonic() - began[0] if began else 0
        odd = FAULT_S[0] <= t < FAULT_S[1]
        if odd != odd_before:
            say("pump: bearing wear " + ("begins" if odd else "ends"))
        odd_before = odd
        vib = 0.9 if odd else 0.027 + i * 7 % 13 / 5000
        row = f"{i},{i * 50},{vib:.4f},{vib + 0.013:.4f},2.4,0.1,68.0,25.1,231.0,{32 + i * 5 % 11 / 50:.4f}\n"
        try:
            line.sendall(row.encode())
        except OSError:
            return
        i += 1
        time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser(prog="image/run qemu")
    parser.add_argument("--for", dest="seconds", type=float, help="end after so many; 1 where no alarm was seen by then")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    began_s = time.monotonic()

    def say(text):
        print(f"{time.monotonic() - began_s:7.1f} s  {text}", flush=True)

    work = pathlib.Path(tempfile.mkdtemp(prefix="kentledge-run-"))
    certificates(work)
    plain, tls, ssh = free_port(), free_port(), free_port()
    (work / "mosquitto.conf").write_text(
        f"listener {plain} 127.0.0.1\nallow_anonymous true\nlistener {tls} 127.0.0.1\n"
        f"cafile {work}/ca.pem\ncertfile {work}/server.pem\nkeyfile {work}/server.key\nuser root\n")
    call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / "ssh")
    card = ROOT / "target/image/card.img"
    if not (args.keep and card.exists()):
        call("cp", "--sparse=always", IMAGE / "disk.img", card)
        os.truncate(card, 2 << 30)
    (work / "provision.toml").write_text(
        f'site = "bench"\ndevice = "pump-1"\nauthorized_keys = [{json.dumps((work / "ssh.pub").read_text().strip())}]\n'
        f"[broker]\nurl = \"mqtts://10.0.2.2:{tls}\"\nca = '''\n{(work / 'ca.pem').read_text()}'''\n")
    call("mcopy", "-o", "-i", f"{card}@@1M", work / "provision.toml", "::provision.toml")
    children = [subprocess.Popen(["mosquitto", "-c", str(work / "mosquitto.conf")], stderr=subprocess.DEVNULL)]
    qemu = ["qemu-system-aarch64", "-M", "virt,gic-version=3", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "cortex-a53",
            "-smp", "2", "-m", "768", "-display", "none", "-monitor", "none", "-bios", str(IMAGE / "u-boot.bin"),
            "-chardev", f"file,id=console,path={work}/console", "-serial", "chardev:console",
            "-chardev", f"socket,id=sensor,path={work}/sensor,server=on,wait=off", "-device", "pci-serial,chardev=sensor",
            "-drive", f"if=none,id=card,format=raw,file={card}", "-device", "virtio-blk-pci,drive=card,bootindex=0",
            "-device", "i6300esb", "-action", "watchdog=reset", "-device", "virtio-rng-pci",
            "-device", "virtio-net-pci,netdev=net,romfile=", "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{ssh}-:22"]
    board = subprocess.Popen(qemu)
    children.append(board)
    say(f"the board is switched on; console: {work}/console")
    say(f"ssh -i {work}/ssh -p {ssh} -o UserKnownHostsFile=/dev/null admin@127.0.0.1 journalctl -u kentledge -f")
    say(f"mosquitto_sub -h 127.0.0.1 -p {plain} -v -t 'kl/#'")
    time.sleep(0.5)
    if board.poll() is not None:
        sys.exit(f"QEMU ended with {board.returncode}")
    sub = subprocess.Popen(["mosquitto_sub", "-h", "127.0.0.1", "-p", str(plain), "-t", "kl/bench/pump-1/up/#", "-F", "%t %p"],
                           stdout=subprocess.PIPE, text=True)
    children.append(sub)
    began = []
    threading.Thread(target=pump, args=(work / "sensor", began, say), daemon=True).start()
    if args.seconds:
        end = threading.Timer(args.seconds, sub.terminate)
        end.daemon = True  # not needed any more if the alarm was cleared before
        end.start()
    raised = cleared = False
    shown_s = 0
    try:
        for line in sub.stdout:
            topic, _, text = line.partition(" ")
            stream = topic.split("/up/")[1]
            message = json.loads(text) if text.strip() else {}
            if stream == "p/anomaly":
                record = message["data"][-1]
                began or began.append(time.monotonic())
                if time.monotonic() - shown_s > 5:
                    shown_s = time.monotonic()
                    say(f"{stream}: score {record.get('score')}, {message.get('lineage', {}).get('model')} "
                        f"on {message.get('lineage', {}).get('provider')}")
            elif stream == "a/anomaly":
                if not message:  # the retained one is taken away
                    continue
                record = message["data"][-1]
                say(f"ALARM {stream} {record['phase']}: score {record.get('score')}, level {record.get('level')}")
                raised |= record["phase"] == "raised"
                cleared |= raised and record["phase"] == "cleared"
            elif stream in ("state", "birth") or stream.startswith("e/"):
                data = message.get("data") or [{}]
                what = message.get("state") or message.get("version") or data[-1].get("text", "")
                say(f"{stream}: {what}")
            if cleared and args.seconds:
                break
    except KeyboardInterrupt:
        pass
    finally:
        for child in children:
            child.kill()
        if not args.keep:
            card.unlink(missing_ok=True)
    say("the plug is pulled" + (": an alarm was raised and cleared" if cleared else ""))
    sys.exit(0 if cleared or not args.seconds else 1)


main()
