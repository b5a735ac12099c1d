//! Lines of text as devices of the field send them, through a real port: what arrives at the broker.

use rig::{Mosquitto, Site, Sub, Tty};
use serde_json::{Value, json};

/// A device: name, what the configuration says, what it sends, and the values of its rows.
struct Talker {
    name: &'static str,
    keys: &'static str,
    channels: &'static [&'static str],
    bytes: &'static [u8],
    rows: Value,
}

fn talkers() -> [Talker; 8] {
    [
        Talker {
            name: "scale",
            keys: "columns = [\"\", \"w\"]\nsuffix = { kg = 1, g = 0.001 }\nwords = { OL = \"bad:overload\" }\n",
            channels: &["w"],
            bytes: b"ST,+   7.25kg\r\nUS,-  500 g\r\nST,OL\r\nST,7.25lb\r\n",
            rows: json!([[7.25], [-0.5], ["bad:overload"], ["bad:not_a_number"]]),
        },
        Talker {
            name: "logger",
            keys: "delimiter = \" \"\ndecimal = \",\"\ncolumns = [\"t\", \"\", \"p\"]\n",
            channels: &["t", "p"],
            bytes: b"\xEF\xBB\xBF  18,25   x    0,75\r  -3,5  x 1.5\r",
            rows: json!([[18.25, 0.75], [-3.5, "bad:not_a_number"]]),
        },
        Talker {
            name: "battery",
            keys: "format = \"keyvalue\"\nlabel_end = \"\\t\"\nblock_end = \"Q\"\n",
            channels: &["u", "q"],
            bytes: b"u\t12.5\r\nq\t80\r\nQ\t\xfe\r\nu\t12.4\r\nQ\t\x01\r\n",
            rows: json!([[12.5, 80.0], [12.4, "missing"]]),
        },
        Talker {
            name: "monitor",
            keys: "format = \"keyvalue\"\nlabel_end = \"\\t\"\nblock_end = \"Checksum\"\nblock_check = \"sum8-zero\"\n\
                   words = { \"---\" = \"missing\" }\n",
            channels: &["V", "I"],
            // A bit of the second block is spoilt: its voltage would still be a number.
            bytes: b"\r\nPID\t0x203\r\nV\t26201\r\nI\t-1450\r\nChecksum\t\xA2\
              \r\nPID\t0x203\r\nV\t36199\r\nI\t-1451\r\nChecksum\t\x91\
              \r\nPID\t0x203\r\nV\t26198\r\nI\t---\r\nChecksum\t\x03",
            rows: json!([[26201.0, -1450.0], [26198.0, "missing"]]),
        },
        Talker {
            name: "mixed",
            keys: "format = \"pattern\"\npatterns = ['P(?<bar>[0-9.]+)bar', 'F=(?<f>0x\\w+)', '#.*']\n",
            channels: &["bar"],
            bytes: b"# boot\nP1.25bar\nF=0x1F\nP1,25bar\nP2.5bar\n",
            rows: json!([[1.25], [2.5]]),
        },
        Talker {
            name: "nested",
            keys: "format = \"json\"\nline_end = \";\"\n",
            channels: &["m.t", "v[1]"],
            bytes: b"{\"m\":{\"t\":\"4.5\"},\"v\":[0,9]};\r\n{\"m\":{\"t\":NaN},\"v\":[0,8]};",
            rows: json!([[4.5, 9.0], ["bad:not_a_number", 8.0]]),
        },
        Talker {
            name: "summed",
            keys: "format = \"fixed\"\ncolumns = [\"_:1\", \"h:4\"]\nbase = \"hex\"\ncheck = \"sum8\"\ncheck_mark = \"\"\n",
            channels: &["h"],
            // The sum of H00FF is 0x134, of H01FF 0x135.
            bytes: b"H00FF34\nH01FF34\nH01FF35\n",
            rows: json!([[255.0], [511.0]]),
        },
        Talker {
            name: "dated",
            keys: "columns = [\"at\", \"x\"]\ntime = \"at\"\ntime_format = \"%d.%m.%Y %H:%M:%S\"\n",
            channels: &["x"],
            bytes: b"24.12.2026 18:00:00,1\n12/24/2026 18:00:01,2\n24.12.2026 18:00:02,3\n",
            rows: json!([[1.0], [3.0]]),
        },
    ]
}

#[test]
fn lines_of_each_kind_are_read_as_configured_and_what_is_uncertain_is_bad() {
    let (broker, mut all) = (Mosquitto::start(), talkers());
    let sub = Sub::new(broker.port);
    let mut ttys: Vec<Tty> = all.iter().map(|_| Tty::default()).collect();
    let mut site = Site::new(broker.port);
    for (talker, tty) in all.iter().zip(&ttys) {
        let name = talker.name;
        site = site.with(&format!("[source.{name}]\npath = \"{}\"\n{}", tty.path().display(), talker.keys));
        let channel =
            |(i, column): (usize, &&str)| format!("[channel.{name}-{i}]\nsource = \"{name}\"\ncolumn = \"{column}\"\n");
        site = site.with(&talker.channels.iter().enumerate().map(channel).collect::<String>());
        let list: Vec<String> = (0..talker.channels.len()).map(|i| format!("\"{name}-{i}\"")).collect();
        site = site.with(&format!("[stream.{name}]\nchannels = [{}]\nmode = \"raw\"\n", list.join(", ")));
    }
    let daemon = site.run();
    sub.wait_state("online");
    for (talker, tty) in all.iter().zip(&mut ttys) {
        tty.write(talker.bytes);
    }
    for talker in &mut all {
        let wanted = talker.rows.as_array().map_or(0, Vec::len);
        let records = sub.wait_records(&format!("m/{}", talker.name), wanted);
        let row = |(record, _): &(Value, bool)| -> Value {
            let value = |i: usize| {
                let channel = format!("{}-{i}", talker.name);
                let quality = &record["q"][&channel];
                if quality.is_null() { record["v"][&channel].clone() } else { quality.clone() }
            };
            (0..talker.channels.len()).map(value).collect()
        };
        let rows: Value = records.iter().map(row).collect();
        assert_eq!(
            rows.to_string().replace(".0,", ",").replace(".0]", "]"),
            talker.rows.to_string().replace(".0,", ",").replace(".0]", "]"),
            "{}",
            talker.name
        );
    }
    let refused = |name: &str, word: &str| {
        sub.wait(&format!("{name} counts {word}"), |messages| {
            let last = rig::sub::records(messages, &format!("q/{name}")).pop()?.0;
            (last["refused"][word] == 1).then_some(())
        });
    };
    refused("mixed", "unmatched");
    refused("summed", "checksum");
    refused("monitor", "checksum");
    refused("dated", "clock");
    daemon.stop_well();
}
