//! Who may use the console. Without a token only this machine, and only under its own names: a page of a stranger that points a name
//! of its own at 127.0.0.1 is refused. With a token, its holder. Pure.

use std::net::{IpAddr, SocketAddr};

use sha2::{Digest, Sha256};

/// The rule of one console.
#[derive(Debug, Clone)]
pub struct Guard {
    token: Option<[u8; 32]>,
}

/// The headers that count.
#[derive(Debug, Default, Clone, Copy)]
pub struct Asked<'a> {
    /// Host.
    pub host: Option<&'a str>,
    /// Origin.
    pub origin: Option<&'a str>,
    /// Cookie.
    pub cookie: Option<&'a str>,
    /// Authorization.
    pub authorization: Option<&'a str>,
    /// Content-Type.
    pub content: Option<&'a str>,
    /// It would change something.
    pub post: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No token, or a wrong one.
    Token,
    /// A name that is not this console's, or a page of another site.
    Place(&'static str),
}

impl Guard {
    /// With a token, or without one.
    ///
    /// # Errors
    /// Without a token the address must be this machine's.
    pub fn new(token: Option<&str>, listen: SocketAddr) -> Result<Self, String> {
        let token = token.map(str::trim);
        match token {
            None if !listen.ip().is_loopback() => Err(format!(
                "listen on {listen}: other machines reach it, so it needs --token-file; or listen on 127.0.0.1 behind a reverse proxy"
            )),
            // What may stand in a cookie.
            Some(token) if token.chars().any(|c| !c.is_ascii_graphic() || ";,\\\"".contains(c)) => Err(
                "the token has characters that a cookie cannot hold: only printable ASCII without blanks and ; , \\ \""
                    .into(),
            ),
            Some(token) if token.len() < 16 => Err("the token is too short: 16 characters at least".into()),
            token => Ok(Self { token: token.map(digest) }),
        }
    }

    /// Whether this is the token.
    pub fn is_token(&self, text: &str) -> bool {
        // Digests are compared: how long it takes says nothing of the token.
        self.token.is_some_and(|known| known == digest(text))
    }

    /// Lets a request in, or says why not.
    pub fn admit(&self, asked: Asked<'_>) -> Result<(), Refused> {
        if asked.post {
            if asked.content.is_none_or(|content| !content.starts_with("application/json")) {
                return Err(Refused::Place("the body must be application/json"));
            }
            let own = asked.host.unwrap_or("");
            let foreign = |origin: &str| origin.split_once("://").map_or("", |(_, host)| host) != own;
            if asked.origin.is_some_and(foreign) {
                return Err(Refused::Place("the page of another site may not send"));
            }
        }
        if self.token.is_none() {
            return match asked.host.is_some_and(is_own_name) {
                true => Ok(()),
                false => Err(Refused::Place("without a token the console answers as localhost and 127.0.0.1 only")),
            };
        }
        let bearer = asked.authorization.and_then(|text| text.strip_prefix("Bearer "));
        let cookies = asked.cookie.unwrap_or("").split(';');
        let cookie = cookies.filter_map(|pair| pair.trim().strip_prefix("kentledge=")).next();
        match bearer.or(cookie).is_some_and(|text| self.is_token(text)) {
            true => Ok(()),
            false => Err(Refused::Token),
        }
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

fn is_own_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "correct-horse-battery";

    fn here() -> SocketAddr {
        "127.0.0.1:8080".parse().expect("an address")
    }

    #[test]
    fn without_a_token_only_this_machine_under_its_own_names_is_let_in() {
        assert!(Guard::new(None, "0.0.0.0:8080".parse().expect("an address")).is_err());
        let guard = Guard::new(None, here()).expect("a guard");
        let from = |host| guard.admit(Asked { host: Some(host), ..Asked::default() });
        for host in ["localhost:8080", "127.0.0.1", "[::1]:8080"] {
            assert_eq!(from(host), Ok(()), "{host}");
        }
        for host in ["evil.example:8080", "127.0.0.1.evil.example", ""] {
            assert!(matches!(from(host), Err(Refused::Place(_))), "{host}");
        }
    }

    #[test]
    fn with_a_token_it_must_be_in_the_cookie_or_the_header() {
        assert!(Guard::new(Some("short"), here()).is_err());
        assert!(Guard::new(Some("with blanks and; more"), here()).is_err());
        let guard =
            Guard::new(Some(&format!("{TOKEN}\n")), "0.0.0.0:80".parse().expect("an address")).expect("a guard");
        let asked = Asked { host: Some("fleet.example"), ..Asked::default() };
        assert_eq!(guard.admit(asked), Err(Refused::Token));
        let cookie = format!("a=b; kentledge={TOKEN}");
        assert_eq!(guard.admit(Asked { cookie: Some(&cookie), ..asked }), Ok(()));
        let bearer = format!("Bearer {TOKEN}");
        assert_eq!(guard.admit(Asked { authorization: Some(&bearer), ..asked }), Ok(()));
        assert_eq!(guard.admit(Asked { cookie: Some("kentledge=wrong"), ..asked }), Err(Refused::Token));
    }

    #[test]
    fn a_page_of_another_site_cannot_send() {
        let guard = Guard::new(None, here()).expect("a guard");
        let asked =
            Asked { host: Some("localhost:8080"), post: true, content: Some("application/json"), ..Asked::default() };
        assert_eq!(guard.admit(Asked { origin: Some("http://localhost:8080"), ..asked }), Ok(()));
        assert!(guard.admit(Asked { origin: Some("http://evil.example"), ..asked }).is_err());
        assert!(guard.admit(Asked { content: Some("text/plain"), ..asked }).is_err());
    }
}
