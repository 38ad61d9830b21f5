use super::*;
use crate::golden;

#[test]
fn lists_grant_what_the_table_says() {
    let owner = Identity { uid: 10, gid: 20 };
    golden::check("access.txt", include_str!("../../testdata/access.txt"), |row| {
        let (who, list) = row.split_once(" @ ").expect("UID/GID @ LIST");
        let (uid, gid) = who.split_once('/').expect("UID/GID");
        let identity = Identity { uid: uid.parse().expect("a uid"), gid: gid.parse().expect("a gid") };
        match list.parse::<Acl>() {
            Ok(acl) => match acl.grants(identity, owner) {
                Capabilities::NONE => "nothing".to_owned(),
                capabilities => capabilities.to_string(),
            },
            Err(error) => error.to_string(),
        }
    });
}

#[test]
fn entries_print_as_they_parse() {
    for text in ["A::OWNER@:rw", "A::1000@:r", "A:G:GROUP@:rwcdtTaAo", "A:G:7@:", "A::EVERYONE@:t"] {
        assert_eq!(text.parse::<Entry>().expect("parses").to_string(), text);
    }
    for text in ["", "A", "D::OWNER@:r", "A:X:1@:r", "A::bob@:r", "A::1:r", "A::OWNER@:r:w", "A:G:OWNER@:r"] {
        assert!(text.parse::<Entry>().is_err(), "{text:?} was taken");
    }
}

#[test]
fn lists_from_outside_are_checked() {
    let entry: Entry = "A::OWNER@:r".parse().expect("parses");
    let bytes = postcard::to_stdvec(&vec![entry, entry]).expect("serialises");
    assert!(postcard::from_bytes::<Acl>(&bytes).is_err());
    assert!(postcard::from_bytes::<Capabilities>(&[0xff, 0xff, 0x03]).is_err());
}
