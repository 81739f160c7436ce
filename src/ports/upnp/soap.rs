//! Calls of a UPnP service.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    net::Ipv4Addr,
};

use hyper::StatusCode;

use super::{
    device::{Service, child, document},
    http,
};
use crate::ports::text::printable;

/// The port is forwarded to another host.
pub(super) const CONFLICT: u16 = 718;
/// The router itself, or another protocol, has the port.
pub(super) const USED_OTHERWISE: u16 = 729;
/// Not allowed, which many say of ports out of the range that they allow.
pub(super) const NOT_ALLOWED: u16 = 606;
/// External and internal port must be the same.
pub(super) const SAME_PORT_ONLY: u16 = 724;
/// The router knows no mappings that end.
pub(super) const WITHOUT_END_ONLY: u16 = 725;
/// There is no such mapping.
pub(super) const NO_SUCH_ENTRY: u16 = 714;

/// Of what a router says about a refusal.
const MAX_WORDS: usize = 80;
/// Values taken of an answer, and the length of each.
const MAX_VALUES: usize = 16;
const MAX_VALUE: usize = 256;

/// Why a call did not work, for a person; printable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The service says no.
    #[error("error {code}{}", words(.text))]
    Refused { code: u16, text: String },
    #[error("it answers with HTTP status {0}")]
    Status(u16),
    #[error("{0}")]
    Odd(&'static str),
    #[error("{0}")]
    Connection(String),
}

impl Fault {
    pub(super) fn is(&self, other: u16) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == other)
    }

    /// Another port may do.
    pub(super) fn is_about_the_port(&self) -> bool {
        [CONFLICT, USED_OTHERWISE, NOT_ALLOWED].iter().any(|code| self.is(*code))
    }
}

/// A call that is being put together.
#[derive(Debug)]
pub(super) struct Call<'a> {
    service: &'a Service,
    action: &'static str,
    arguments: String,
}

impl<'a> Call<'a> {
    pub(super) fn new(service: &'a Service, action: &'static str) -> Self {
        Self { service, action, arguments: String::new() }
    }

    /// Adds an argument. They go out in this order, which some routers insist
    /// on. Values are ours: numbers, addresses and constants.
    pub(super) fn with(mut self, name: &'static str, value: impl Display) -> Self {
        // Writing to a text cannot fail.
        let _ = write!(self.arguments, "<{name}>{value}</{name}>");
        self
    }

    pub(super) async fn send(self, local: Ipv4Addr) -> Result<Answer, Fault> {
        let Self { service, action, .. } = &self;
        let header = format!("\"{}#{action}\"", service.kind);
        let (status, text) = http::post(local, service.host, &service.path, &header, self.envelope()).await?;
        if status == StatusCode::OK { answer(&text, action) } else { Err(refusal(status, &text)) }
    }

    fn envelope(&self) -> String {
        let Self { service: Service { kind, .. }, action, arguments } = self;
        format!(
            "<?xml version=\"1.0\"?>\r\n\
             <s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{action} xmlns:u=\"{kind}\">{arguments}</u:{action}></s:Body></s:Envelope>\r\n"
        )
    }
}

/// What a call gave back.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer(BTreeMap<String, String>);

impl Answer {
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

fn answer(text: &str, action: &str) -> Result<Answer, Fault> {
    let document = document(text)?;
    let name = format!("{action}Response");
    let response = document.descendants().find(|node| node.tag_name().name() == name);
    let response = response.ok_or(Fault::Odd("it answers something else than it was asked"))?;
    let values = response.children().filter(roxmltree::Node::is_element).filter_map(|node| {
        let value = node.text().unwrap_or_default().trim();
        (value.len() <= MAX_VALUE).then(|| (node.tag_name().name().to_owned(), value.to_owned()))
    });
    Ok(Answer(values.take(MAX_VALUES).collect()))
}

fn refusal(status: StatusCode, text: &str) -> Fault {
    let told = || {
        let document = document(text).ok()?;
        let error = document.descendants().find(|node| node.tag_name().name() == "UPnPError")?;
        let code = child(error, "errorCode")?.parse().ok()?;
        let text = printable(child(error, "errorDescription").unwrap_or_default(), MAX_WORDS);
        Some(Fault::Refused { code, text })
    };
    told().unwrap_or(Fault::Status(status.as_u16()))
}

fn words(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_an_envelope_with_arguments_in_order() {
        let service = Service {
            kind: "urn:schemas-upnp-org:service:WANIPConnection:1",
            host: "192.168.1.1:80".parse().unwrap(),
            path: "/".into(),
        };
        let call = Call::new(&service, "DeletePortMapping").with("NewRemoteHost", "").with("NewExternalPort", 4001);
        let envelope = call.envelope();
        document(&envelope).unwrap();
        assert!(envelope.contains(
            "<u:DeletePortMapping xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\">\
             <NewRemoteHost></NewRemoteHost><NewExternalPort>4001</NewExternalPort></u:DeletePortMapping>"
        ));
    }

    #[test]
    fn values_of_an_answer_are_found() {
        let text = r#"<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>
            <u:GetExternalIPAddressResponse xmlns:u="urn:x"><NewExternalIPAddress> 128.66.0.1 </NewExternalIPAddress>
            </u:GetExternalIPAddressResponse></s:Body></s:Envelope>"#;
        let answer = super::answer(text, "GetExternalIPAddress").unwrap();
        assert_eq!(answer.value("NewExternalIPAddress"), Some("128.66.0.1"));
        assert!(super::answer(text, "AddPortMapping").is_err());
        assert!(super::answer("", "AddPortMapping").is_err());
    }

    #[test]
    fn a_refusal_is_told_in_the_routers_words_made_printable() {
        let fault = |description: &str| {
            let text = format!(
                "<s:Envelope xmlns:s=\"urn:s\"><s:Body><s:Fault><detail><UPnPError xmlns=\"urn:c\">\
                 <errorCode>718</errorCode><errorDescription>{description}</errorDescription>\
                 </UPnPError></detail></s:Fault></s:Body></s:Envelope>"
            );
            refusal(StatusCode::INTERNAL_SERVER_ERROR, &text)
        };
        let plain = fault("ConflictInMappingEntry");
        assert!(plain.is(CONFLICT));
        assert_eq!(plain.to_string(), "error 718 (ConflictInMappingEntry)");
        assert_eq!(fault("").to_string(), "error 718");
        let long = fault(&"é\u{202e}".repeat(5000)).to_string();
        assert!(long.chars().count() < 100 && !long.contains('\u{202e}'), "{long}");
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, "<"), Fault::Status(502));
    }

    #[test]
    fn answers_without_end_are_cut() {
        let values = (0..1000).fold(String::new(), |text, at| text + &format!("<v{at}>1</v{at}>"));
        let answer = super::answer(&format!("<AResponse>{values}</AResponse>"), "A").unwrap();
        assert_eq!(answer.0.len(), MAX_VALUES);
        let long = super::answer(&format!("<AResponse><v>{}</v></AResponse>", "1".repeat(5000)), "A").unwrap();
        assert_eq!(long.value("v"), None);
    }
}
