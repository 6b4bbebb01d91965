//! The lines and columns of a YAML document, by path, for mistakes that are found after it was parsed.
//!
//! Owns: the way from a path such as `accounts.acme.budgets[0]` to a place in the text. Refuses to know: what the
//! document means. Invariants: a path that leads nowhere is placed at the last part of it that exists.

use serde::Deserialize;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// A line and a column, both from 1.
pub type Place = (usize, usize);

/// A document without its values.
#[derive(Debug)]
pub enum Node {
    Map(Vec<(Spanned<String>, Node)>),
    List(Vec<Spanned<Node>>),
    Leaf,
}

impl Node {
    /// `None` for a text that is not YAML.
    pub fn read(text: &str) -> Option<Self> {
        serde_saphyr::from_str(text).ok()
    }

    /// Where a path leads: to the key of a value, or to an item of a list.
    pub fn find(&self, path: &str) -> Option<Place> {
        let mut found = None;
        let (mut node, mut rest) = (self, path);
        loop {
            let step = match node {
                // Names may have dots in them: the longest key that fits is meant.
                Node::Map(entries) => entries
                    .iter()
                    .filter_map(|(key, value)| Some((key, value, after_key(rest, &key.value)?)))
                    .max_by_key(|(key, ..)| key.value.len())
                    .map(|(key, value, rest)| (key.referenced, value, rest)),
                Node::List(items) => after_index(rest).and_then(|(index, rest)| {
                    let item = items.get(index)?;
                    Some((item.referenced, &item.value, rest))
                }),
                Node::Leaf => None,
            };
            let Some((location, next, remaining)) = step else {
                return found;
            };
            found = place(location).or(found);
            (node, rest) = (next, remaining);
        }
    }
}

pub fn place(location: Location) -> Option<Place> {
    let place = (
        usize::try_from(location.line()).ok()?,
        usize::try_from(location.column()).ok()?,
    );
    (place.0 > 0).then_some(place)
}

fn after_key<'a>(path: &'a str, key: &str) -> Option<&'a str> {
    let rest = path.strip_prefix('.').unwrap_or(path).strip_prefix(key)?;
    (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
}

fn after_index(path: &str) -> Option<(usize, &str)> {
    let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Shape)
    }
}

struct Shape;

impl<'de> Visitor<'de> for Shape {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_none<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_by_line_and_column() {
        let text = "a:\n  b.c:\n    - x: 1\n    - {y: [2, 3.5], z: null}\n  b: true\n";
        let node = Node::read(text).unwrap();
        let check = |path: &str, place: Place| assert_eq!(node.find(path), Some(place), "{path}");
        check("a", (1, 1));
        check("a.b", (5, 3));
        check("a.b.c", (2, 3));
        check("a.b.c[0].x", (3, 7));
        check("a.b.c[1]", (4, 7));
        check("a.b.c[1].y[1]", (4, 15));
        check("a.b.c[1].missing", (4, 7));
        check("a.b.c[7].x", (2, 3));
        assert_eq!(node.find("q"), None);
    }
}
