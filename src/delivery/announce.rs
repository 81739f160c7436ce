//! What the apps of this node announce, for as long as they do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use super::{Delivery, DeliveryError, progress::lock};
use crate::types::{MAX_ROLES, Presence};

/// The announcements in force, and what follows from them.
#[derive(Debug)]
pub(super) struct Announcements {
    name: String,
    open: Mutex<Open>,
    /// What peers are to be told.
    told: watch::Sender<Arc<Presence>>,
}

/// By age: the youngest is last.
#[derive(Debug, Default)]
struct Open {
    all: BTreeMap<u64, (Vec<String>, String)>,
    last: u64,
}

/// An announcement in force; dropping it withdraws it.
#[derive(Debug)]
pub struct Announcement {
    of: Arc<Announcements>,
    number: u64,
}

impl Announcements {
    pub(super) fn new(name: String) -> Arc<Self> {
        let told = Presence { name: name.clone(), ..Presence::default() };
        Arc::new(Self { name, open: Mutex::default(), told: watch::Sender::new(Arc::new(told)) })
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Presence>> {
        self.told.subscribe()
    }

    fn add(self: &Arc<Self>, roles: Vec<String>, text: String) -> Result<Announcement, DeliveryError> {
        let mut open = lock(&self.open);
        let number = open.last + 1;
        open.all.insert(number, (roles, text));
        if open.roles().len() > MAX_ROLES {
            open.all.remove(&number);
            return Err(DeliveryError::TooMany {
                what: "roles announced by all apps of this node",
                used: open.roles().len() as u64,
                max: MAX_ROLES as u64,
                remedy: "announce fewer, or end another SetPresence",
            });
        }
        open.last = number;
        self.tell(&open);
        Ok(Announcement { of: self.clone(), number })
    }

    /// Under the lock, so that an older state never follows a younger one.
    fn tell(&self, open: &Open) {
        let roles = open.roles().into_iter().map(ToOwned::to_owned).collect();
        let text = open.all.values().rev().map(|(_, text)| text).find(|text| !text.is_empty());
        let presence = Presence { name: self.name.clone(), roles, text: text.cloned().unwrap_or_default() };
        self.told.send_if_modified(|told| {
            let changed = **told != presence;
            if changed {
                *told = Arc::new(presence);
            }
            changed
        });
    }
}

impl Open {
    fn roles(&self) -> BTreeSet<&str> {
        self.all.values().flat_map(|(roles, _)| roles).map(String::as_str).collect()
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        let mut open = lock(&self.of.open);
        open.all.remove(&self.number);
        self.of.tell(&open);
    }
}

impl Delivery {
    /// Tells trusted peers of roles and a text, both checked, until the
    /// announcement is dropped. Roles of several announcements are united; the
    /// text of the youngest that has one holds.
    ///
    /// # Errors
    /// [`DeliveryError::TooMany`] when all roles together are more than
    /// [`MAX_ROLES`].
    pub fn announce(&self, roles: Vec<String>, text: String) -> Result<Announcement, DeliveryError> {
        self.inner.announced.add(roles, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn told(announced: &Announcements) -> (String, Vec<String>, String) {
        let Presence { name, roles, text } = Presence::clone(&announced.watch().borrow());
        (name, roles, text)
    }

    #[test]
    fn roles_are_united_and_the_youngest_text_holds() {
        let announced = Announcements::new("pi".into());
        assert_eq!(told(&announced), ("pi".into(), vec![], String::new()));
        let first = announced.add(roles(&["server", "log"]), "one".into()).unwrap();
        let second = announced.add(roles(&["cam", "log"]), "two".into()).unwrap();
        let third = announced.add(roles(&["cam"]), String::new()).unwrap();
        assert_eq!(told(&announced), ("pi".into(), roles(&["cam", "log", "server"]), "two".into()));
        drop(second);
        assert_eq!(told(&announced), ("pi".into(), roles(&["cam", "log", "server"]), "one".into()));
        drop(first);
        assert_eq!(told(&announced), ("pi".into(), roles(&["cam"]), String::new()));
        drop(third);
        assert_eq!(told(&announced), ("pi".into(), vec![], String::new()));
    }

    #[test]
    fn too_many_roles_change_nothing() {
        let announced = Announcements::new(String::new());
        let many: Vec<String> = (0..MAX_ROLES).map(|n| n.to_string()).collect();
        let _all = announced.add(many.clone(), String::new()).unwrap();
        assert!(matches!(announced.add(roles(&["more"]), "x".into()), Err(DeliveryError::TooMany { max: 32, .. })));
        assert_eq!(told(&announced).1.len(), MAX_ROLES);
        assert_eq!(told(&announced).2, "");
        announced.add(roles(&["1", "2"]), "y".into()).unwrap();
    }
}
