use super::*;

fn said(bytes: &[u8]) -> String {
    let text = Pickle::read(bytes).unwrap_err().to_string();
    assert_eq!(text.lines().count(), 2, "{text}");
    text
}

/// Each of these runs a command, or reads an attribute, when Python loads it. Here it is an object that does nothing, and is named.
#[test]
fn names_that_do_something_do_nothing_and_are_named() {
    for (bytes, name) in [
        (&b"\x80\x02cposix\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03."[..], "posix.system"),
        (b"cos\nsystem\n(S'id'\ntR.", "os.system"),
        (b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", "__builtin__.eval"),
        (
            b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R.",
            "builtins.exec",
        ),
        (
            b"\x80\x02cbuiltins\ngetattr\nctorch._utils\n_rebuild_parameter\nX\x0b\x00\x00\x00__globals__\x86R.",
            "builtins.getattr",
        ),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n)R.", "torch._utils._rebuild_tensor_v2.__globals__"),
        (b"\x80\x02ctorch.serialization\nload\n)R.", "torch.serialization.load"),
        (b"\x80\x02cvision_transformer\nVisionTransformer\n)\x81}b.", "vision_transformer.VisionTransformer"),
        (b"\x80\x02ctorch\nload\n)R.", "torch.load"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nX\x02\x00\x00\x00ido.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.", "os.system"),
        // A function that claims to make a tensor.
        (b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN)}tR.", "os.system"),
    ] {
        let read = Pickle::read(bytes).unwrap();
        let Value::Object(object) = read.root() else { panic!("{name}: {:?}", read.root()) };
        assert_eq!((&*object.name, read.passed_over.first().map(String::as_str)), (name, Some(name)));
        assert_eq!(read.passed_over.len(), 1, "{name}");
    }
    // In the state of a harmless object, and in its arguments.
    for bytes in [
        &b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00acos\nsystem\nsb."[..],
        b"\x80\x02cargparse\nNamespace\ncos\nsystem\n(tR\x85R.",
    ] {
        let read = Pickle::read(bytes).unwrap();
        assert!(matches!(read.root(), Value::Object(o) if &*o.name == "argparse.Namespace"), "{:?}", read.root());
        assert_eq!(read.passed_over.into_iter().collect::<Vec<_>>(), ["os.system"]);
    }
    // Known names in the wrong place, persistent objects, extensions and buffers from outside: nothing, and nothing to name.
    for bytes in [
        &b"\x80\x02cargparse\nNamespace\n)\x81)R."[..],
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n(NtR.",
        b"\x80\x02X\x01\x00\x00\x00aQ.",
        b"Pfile\n.",
        b"\x80\x02\x82\x01)R.",
        b"\x80\x02\x84\x01\x00\x00\x00)\x81.",
    ] {
        let read = Pickle::read(bytes).unwrap();
        assert!(matches!(read.root(), Value::Object(_)) && read.passed_over.is_empty(), "{:?}", read.root());
    }
    assert_eq!(Pickle::read(b"\x80\x05\x97\x98.").unwrap().root(), &Value::Bytes);
    // However many names there are, some thousand short ones are kept.
    let many: Vec<u8> = (0..5000).flat_map(|i| format!("c{}\n{i}\n0", "m".repeat(300)).into_bytes()).collect();
    let read = Pickle::read(&[&many[..], b"N."].concat()).unwrap();
    assert!(read.passed_over.iter().all(|name| name.len() <= LONGEST) && read.passed_over.len() <= MOST_NAMES);
}

#[test]
fn no_pickle_takes_more_than_its_bytes_allow() {
    // Texts, bytes and numbers that claim to be huge.
    for bytes in [
        &b"\x80\x02X\xff\xff\xff\xffabc."[..],
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
        b"\x80\x02\x8a\xffabc.",
    ] {
        assert!(said(bytes).contains("ends early"));
    }
    // A list that holds itself, and lists of lists whose expansion would have 2^200 elements.
    let own = Pickle::read(b"\x80\x02]q\x00h\x00ah\x00a.").unwrap();
    assert_eq!(own.root(), &Value::Sequence(vec![0, 0]));
    let mut bomb = b"\x80\x02]q\x00".to_vec();
    (0..200u8).for_each(|i| bomb.extend([b']', b'q', i + 1, b'h', i, b'a', b'h', i, b'a']));
    bomb.push(b'.');
    assert_eq!(Pickle::read(&bomb).unwrap().values.len(), 201);
    // A million brackets deep, and a stack of recalled values.
    let deep = [vec![b'('; 1 << 20], vec![b't'; 1 << 20], vec![b'.']].concat();
    assert!(matches!(Pickle::read(&deep).unwrap().root(), Value::Sequence(_)));
    let many = [b"\x80\x02Nq\x00".to_vec(), b"h\x00".repeat(MOST_VALUES), vec![b'.']].concat();
    assert!(said(&many).contains("without end"));
    assert!(said(&vec![b'N'; MOST_VALUES + 1]).contains("more than"));
}

#[test]
fn damaged_pickles_are_said_to_be() {
    let whole = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00bG?\xf0\x00\x00\x00\x00\x00\x00u.";
    let read = Pickle::read(whole).unwrap();
    assert_eq!(read.used, whole.len());
    let Value::Dict(pairs) = read.root() else { panic!("{:?}", read.root()) };
    let seen: Vec<_> = pairs.iter().map(|(k, v)| (read.text(*k).unwrap(), &read.values[*v])).collect();
    assert_eq!(seen, [("a", &Value::Int(1)), ("b", &Value::Float(1.0))]);
    for n in 0..whole.len() {
        said(&whole[..n]);
    }
    for bytes in
        [&b"."[..], b"(.", b"t.", b"\x80\x09.", b"a.", b"NNa.", b"NNs.", b"h\x00.", b"\xff.", b"R.", b"NNR.", b"(0."]
    {
        said(bytes);
    }
    for (bytes, n) in [
        (&b"\x8a\x00."[..], 0),
        (b"\x8a\x01\xff.", -1),
        (b"\x8a\x02\x00\x01.", 256),
        (b"J\xfe\xff\xff\xff.", -2),
        (b"L-7L\n.", -7),
    ] {
        assert_eq!(Pickle::read(bytes).unwrap().root(), &Value::Int(n));
    }
}
