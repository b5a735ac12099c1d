//! The machine's own settings in `provision.toml`, as files of systemd-networkd, systemd-timesyncd and SSH. Pure: only
//! validated values get into them.

use std::{fmt::Write, net::IpAddr};

use serde::Deserialize;

/// `[network]`; without an address DHCP is used.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    interface: Option<String>,
    address: Option<String>,
    gateway: Option<String>,
    #[serde(default)]
    dns: Vec<String>,
}

/// The files, by name; an empty text means no file.
pub(super) fn render(
    network: Option<&Network>,
    ntp: &[String],
    keys: &[String],
) -> Result<[(&'static str, String); 3], String> {
    Ok([
        ("provisioned.network", network.map(unit).transpose()?.unwrap_or_default()),
        ("ntp.conf", time_servers(ntp)?),
        ("authorized_keys", authorized(keys)?),
    ])
}

fn unit(network: &Network) -> Result<String, String> {
    let ip =
        |key: &str, text: &str| text.parse::<IpAddr>().map_err(|_| format!("network.{key}: `{text}` is no IP address"));
    let mut unit = match &network.interface {
        None => "[Match]\nType=ether\n".to_owned(),
        Some(name) => {
            let ok = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if name.is_empty() || name.len() > 15 || !name.bytes().all(ok) {
                return Err(format!("network.interface: `{name}` is no name of an interface"));
            }
            format!("[Match]\nName={name}\n")
        }
    };
    unit.push_str("[Network]\n");
    match &network.address {
        None => unit.push_str("DHCP=yes\n"),
        Some(address) => {
            let wrong = || format!("network.address: `{address}` is no ADDRESS/PREFIX");
            let (host, prefix) = address.split_once('/').ok_or_else(wrong)?;
            let host: IpAddr = host.parse().map_err(|_| wrong())?;
            let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
            if prefix > if host.is_ipv4() { 32 } else { 128 } {
                return Err(wrong());
            }
            let _ = writeln!(unit, "Address={host}/{prefix}");
        }
    }
    if let Some(gateway) = &network.gateway {
        let _ = writeln!(unit, "Gateway={}", ip("gateway", gateway)?);
    }
    for server in &network.dns {
        let _ = writeln!(unit, "DNS={}", ip("dns", server)?);
    }
    Ok(unit)
}

fn time_servers(servers: &[String]) -> Result<String, String> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"-.:".contains(&b);
    if let Some(bad) = servers.iter().find(|s| s.is_empty() || s.len() > 253 || !s.bytes().all(ok)) {
        return Err(format!("ntp: invalid host `{bad}`"));
    }
    Ok(if servers.is_empty() { String::new() } else { format!("[Time]\nNTP={}\n", servers.join(" ")) })
}

fn authorized(keys: &[String]) -> Result<String, String> {
    let mut text = String::new();
    for key in keys {
        let key = key.trim();
        // The type comes first: options before it could run a command.
        let mut words = key.split(' ');
        let kind = words.next().unwrap_or("");
        let known = kind.starts_with("ssh-") || kind.starts_with("ecdsa-sha2-") || kind.starts_with("sk-");
        let body = words.next().unwrap_or("");
        let base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
        if !known || body.len() < 40 || !body.bytes().all(base64) || key.contains(['\n', '\r', '\0']) {
            return Err(format!("authorized_keys: `{key}` is no public key"));
        }
        let _ = writeln!(text, "{key}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Result<String, String> {
        let network: Network = toml::from_str(text).map_err(|why| why.to_string())?;
        render(Some(&network), &[], &[]).map(|files| files[0].1.clone())
    }

    #[test]
    fn what_is_understood_becomes_files_and_nothing_else_does() {
        assert_eq!(network("").expect("DHCP"), "[Match]\nType=ether\n[Network]\nDHCP=yes\n");
        let fixed = "interface = \"eth0\"\naddress = \"10.0.0.5/24\"\ngateway = \"10.0.0.1\"\ndns = [\"fd00::1\"]";
        let unit = "[Match]\nName=eth0\n[Network]\nAddress=10.0.0.5/24\nGateway=10.0.0.1\nDNS=fd00::1\n";
        assert_eq!(network(fixed).expect("fixed"), unit);
        for bad in [
            "address = \"10.0.0.5\"",
            "address = \"10.0.0.5/33\"",
            "gateway = \"here\"",
            "dns = [\"1.1.1.1\\nDHCP=yes\"]",
            "interface = \"eth0\\n[Exec]\"",
            "ssid = \"x\"",
        ] {
            assert!(network(bad).is_err(), "{bad}");
        }
        let key = format!("ssh-ed25519 {} me@here", "A".repeat(68));
        let all = render(None, &["time.example".into(), "10.0.0.2".into()], std::slice::from_ref(&key)).expect("files");
        assert_eq!(all[0].1, "");
        assert_eq!(all[1].1, "[Time]\nNTP=time.example 10.0.0.2\n");
        assert_eq!(all[2].1, format!("{key}\n"));
        for bad in ["command=\"x\" ssh-ed25519 AAAA", "ssh-ed25519", &format!("{key}\n{key}")] {
            assert!(render(None, &[], &[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(render(None, &["a b".into()], &[]).is_err());
    }
}
