//! The first start: provisioned, sensed, alarmed, looked at by SSH; and who may do what in the running system.

use std::time::{Duration, Instant};

use rig::measured;
use serde_json::Value;

use crate::world::Device;

#[test]
fn a_flashed_device_is_provisioned_raises_an_alarm_and_is_read_by_ssh() {
    let mut device = Device::new();
    let began = Instant::now();
    device.start();
    let ready_s = device.machine.run("systemd-analyze timestamp -- 2>/dev/null; cut -d' ' -f1 /proc/uptime");
    measured(&format!(
        "first boot: online after {:.0} s, {:.0} s of processor time; {}",
        began.elapsed().as_secs_f64(),
        device.machine.cpu_s(),
        ready_s.lines().last().unwrap_or("")
    ));
    // Taken over once, and gone from the card that anyone can take out.
    device.machine.run("! test -e /boot/provision.toml");
    device.good();
    measured(&format!("memory: {}", device.machine.run("free -m | sed -n 2p")));
    // The boot loader knows which system is good, and in which slot.
    let build = device.machine.run("sed -n 's/^BUILD_ID=//p' /etc/os-release");
    assert_eq!(device.machine.run("fw_printenv -n GOOD_A"), build);
    // The card is larger than the image.
    let mib: u64 = device.machine.run("df -m --output=size /data | tail -n 1").trim().parse().expect("MiB");
    assert!(mib > 600, "/data has {mib} MiB");
    // Sensor to alarm.
    device.learn();
    std::thread::sleep(Duration::from_secs(2));
    device.alarm();
    // Read by SSH, as the administrator who has no other rights.
    let key = device.key.clone();
    let log = device.machine.ssh(&key, "journalctl -u kentledge --no-pager; id");
    let text = String::from_utf8_lossy(&log.stdout).into_owned();
    assert!(
        text.contains("alarm") && text.contains(" raised: ") && text.contains("(admin)"),
        "{text} {}",
        String::from_utf8_lossy(&log.stderr)
    );
    let status = device.machine.ssh(&key, "kentledge status");
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    who_may_what(&mut device);
    lines(&mut device);
}

/// The table of D-Bus and polkit, tried in the running system as the users themselves; and what the image is made of.
fn who_may_what(device: &mut Device) {
    let as_user = |user: &str, line: &str| format!("setpriv --reuid={user} --regid={user} --init-groups {line} 2>&1");
    let ours = "busctl call org.kentledge.Daemon /org/kentledge/Daemon org.kentledge.Daemon1";
    let rauc = "busctl call de.pengutronix.rauc / de.pengutronix.rauc.Installer";
    let logind = "busctl call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager";
    // The user that is asked, what, and whether it is allowed.
    let table = [
        ("admin", format!("{ours} Status"), true),
        ("admin", format!("{ours} RollBackModel s x"), false),
        ("nobody", format!("{ours} Status"), false),
        ("admin", format!("{rauc} GetSlotStatus"), false),
        ("nobody", format!("{rauc} GetPrimary"), false),
        ("kentledge", format!("{rauc} GetPrimary"), true),
        ("kentledge", format!("{rauc} Mark ss bad booted"), false),
        ("kentledge", format!("{logind} CanReboot"), true),
        ("admin", format!("{logind} Reboot b false"), false),
        ("nobody", format!("{logind} Reboot b false"), false),
        ("kentledge", "systemctl --no-ask-password stop ssh.service".to_owned(), false),
        ("admin", "systemctl --no-ask-password restart kentledge.service".to_owned(), false),
    ];
    for (user, line, allowed) in table {
        let (code, out) = device.machine.try_run(&as_user(user, &line));
        assert_eq!(code == 0, allowed, "{user}: {line}: {out}");
        assert!(!line.contains("CanReboot") || out.contains("yes"), "{user}: {out}");
    }
    // The worker that serves has locked itself up under the unit's own filter.
    let status = device.machine.run("kentledge status --json");
    assert!(status.contains("landlock, seccomp"), "{status}");
    worker_from_inside(device);
    // What listens: SSH alone, and the name service on this machine.
    let listens =
        device.machine.run("ss -Hlntu | awk '{print $1, $5}' | grep -v '127.0.0.5[34]' | sort | paste -sd' '");
    measured(&format!("listening: {listens}"));
    for socket in listens.split(' ').collect::<Vec<_>>().chunks(2) {
        assert!(socket[1].ends_with(":22") || socket[1].contains(":68") || socket[1].contains(":546"), "{listens}");
    }
    assert_eq!(device.machine.run("find / -xdev -perm /6000 -type f | wc -l"), "0");
    assert_eq!(
        device.machine.run("systemctl --failed --no-legend | wc -l"),
        "0",
        "{}",
        device.machine.try_run("systemctl --failed").1
    );
    // The rules and units, by the very versions that use them.
    device.machine.run("udevadm verify /usr/lib/udev/rules.d/6?-kentledge*.rules");
    device.machine.run("systemd-analyze verify /usr/lib/systemd/system/kentledge*.service");
}

/// What a worker can do, tried by itself: as the daemon's user, under the daemon's own unit with another command in it.
fn worker_from_inside(device: &mut Device) {
    let unit = "sed -e 's/^Type=.*/Type=exec/' -e '/^Restart/d; /^WatchdogSec/d' \
                -e 's|^ExecStart=.*|ExecStart=/usr/bin/kentledge model bench --json --runs 5 /usr/lib/kentledge/models/pump-anomaly.kmb|' \
                -e '/^\\[Service\\]/a StandardOutput=file:/run/judged' \
                /usr/lib/systemd/system/kentledge.service >/run/systemd/system/kentledge-judged.service";
    device.machine.run(&format!("{unit} && systemctl daemon-reload && systemctl start kentledge-judged"));
    let wait =
        "for i in $(seq 100); do systemctl is-active -q kentledge-judged || break; sleep 1; done; cat /run/judged";
    let text = device.machine.run(wait);
    let found: Value =
        serde_json::from_str(text.lines().next().unwrap_or("")).unwrap_or_else(|why| panic!("{why}: {text}"));
    let tried = found["tried"].as_object().expect("tried");
    assert!(tried.len() >= 12 && tried.values().all(|came| came == "refused"), "{found}");
    measured(&format!("a worker under the unit's filter, as the daemon's user: {} attempts, all refused", tried.len()));
}

/// GPIO lines of the kernel's own simulator: edges in, an alarm's lamp out, and its safe state when the daemon dies.
fn lines(device: &mut Device) {
    let chip = "/sys/kernel/config/gpio-sim/bench";
    device
        .machine
        .run("modprobe gpio-sim && { mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config; }");
    device.machine.run(&format!("mkdir -p {chip}/bank0/line2 && echo 8 >{chip}/bank0/num_lines"));
    device
        .machine
        .run(&format!("echo bench >{chip}/bank0/label && echo DOOR >{chip}/bank0/line2/name && echo 1 >{chip}/live"));
    let found = device.machine.run("gpioinfo");
    assert!(found.matches("line ").count() >= 8, "{found}");
    let ports = device.machine.run("kentledge ports --listen 0");
    assert!(ports.contains("(bench), 8 lines") && ports.contains("2 DOOR"), "{ports}");
    device.config(
        "gpio-1",
        "[source.pins]\nkind = \"gpio\"\nchip = \"bench\"\n[source.pins.lines]\n\
         flow = { line = 1, read = \"counter\" }\ndoor = { line = \"DOOR\", read = \"edges\" }\n\
         [channel.flow]\nsource = \"pins\"\n[channel.door]\nsource = \"pins\"\n\
         [stream.flow]\nchannels = [\"flow\"]\n[stream.door]\nchannels = [\"door\"]\n\
         [output.lamp]\nchip = \"bench\"\nline = 5\nalarms = [\"anomaly\"]\n",
    );
    let sim = device.machine.run("dirname /sys/devices/platform/gpio-sim.*/gpiochip*/sim_gpio0");
    // The configuration is in use before the chip is open and the guard holds its line.
    let used =
        "for i in $(seq 120); do n=$(gpioinfo | grep -c kentledge); [ $n = 3 ] && break; sleep 0.5; done; echo $n";
    assert_eq!(
        device.machine.run(used),
        "3",
        "{}",
        device.machine.run("gpioinfo; journalctl -u kentledge -n 20 --no-pager")
    );
    // No faster than an emulated processor takes interrupts: the simulator merges what comes before the last was taken.
    let pulses = |line: u32, n: u32| {
        let pull = |to: &str| format!("echo pull-{to} >{sim}/sim_gpio{line}/pull; sleep 0.01");
        format!("for i in $(seq {n}); do {}; {}; done", pull("up"), pull("down"))
    };
    device.machine.run(&pulses(1, 50));
    device.machine.run(&pulses(2, 3));
    let seen = |m: &[std::sync::Arc<rig::Message>], stream: &str, name: &str, value: f64| {
        rig::sub::records(m, stream).iter().filter(|(r, _)| r["v"][name] == value).count()
    };
    device.sub.wait_most(Duration::from_secs(30), "50 pulses", |m| (seen(m, "m/flow", "flow", 50.0) > 0).then_some(()));
    device.sub.wait_most(Duration::from_secs(30), "three times open, three times shut", |m| {
        (seen(m, "m/door", "door", 1.0) == 3 && seen(m, "m/door", "door", 0.0) == 3).then_some(())
    });
    // The lamp, by the kernel's word.
    let lamp = format!("cat {sim}/sim_gpio5/value");
    assert_eq!(device.machine.run(&lamp), "0");
    device.machine.odd(true);
    let wait = |value: u32| {
        format!(
            "a=$(date +%s%N); for i in $(seq 3000); do read v <{sim}/sim_gpio5/value; [ $v = {value} ] && break; sleep 0.01; done; echo $v $((($(date +%s%N) - a) / 1000000))"
        )
    };
    let on = device.machine.run(&wait(1));
    assert!(on.starts_with("1 "), "{on}");
    let killed = device.machine.run(&format!("systemctl kill --kill-whom=main -s KILL kentledge; {}", wait(0)));
    assert!(killed.starts_with("0 "), "{killed}");
    // The next daemon finds the guard, and the alarm is still raised.
    let again = device.machine.run(&wait(1));
    assert!(again.starts_with("1 "), "{again}");
    let frozen = device.machine.run(&format!("systemctl kill --kill-whom=main -s STOP kentledge; {}", wait(0)));
    assert!(frozen.starts_with("0 "), "{frozen}");
    device.machine.run("systemctl kill --kill-whom=main -s CONT kentledge");
    measured(&format!("gpio-sim: lamp safe after kill -9 {} ms, SIGSTOP {} ms (emulated)", &killed[2..], &frozen[2..]));
    device.machine.odd(false);
    device.machine.run("systemctl stop kentledge; gpioinfo | grep -q kentledge-guard");
    assert_eq!(device.machine.run(&lamp), "0");
}
