//! A destination that takes only part, as processes: what it is sent, what it learns, and what happens when it wants more.

mod processes;

use std::fs;
use std::path::Path;

use processes::{Scratch, run};

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("it is below the root")).expect("writable");
    fs::write(path, text).expect("writable");
}

fn names(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("readable") {
            let entry = entry.expect("readable");
            let path = entry.path();
            if entry.file_name() == ".synclave" {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else {
                names.push(path.strip_prefix(root).expect("below").to_string_lossy().into_owned());
            }
        }
    }
    names.sort();
    names
}

#[test]
fn a_filtered_directory_takes_what_it_wants_and_gives_all_it_has() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("a"), scratch.directory("b"));
    for path in ["keep/one.txt", "keep/two.o", "target/x.txt", "target/deep/y.txt", "z.o", "zz.txt"] {
        write(&a, path, path);
    }
    write(&b, "mine.o", "of b");
    let filter = scratch.path("filter");
    fs::write(&filter, "*.o\n/target/\n").expect("writable");
    let options = ["--filter", filter.to_str().expect("UTF-8")];
    scratch.sync(&a, &b, &options);
    assert_eq!(names(&b), ["keep/one.txt", "mine.o", "zz.txt"]);
    assert!(a.join("mine.o").exists(), "a has no filter");

    // Quiet, although A has much that B does not know.
    let again = scratch.sync(&a, &b, &options);
    assert_eq!((again.updates(), again.bytes()), (0, 0));

    // A change and a deletion of what is let through travel; one of what is held back does not, nor is it learned.
    write(&a, "zz.txt", "new");
    write(&a, "target/x.txt", "new");
    fs::remove_file(a.join("keep/one.txt")).expect("it is there");
    scratch.sync(&a, &b, &options);
    assert_eq!(names(&b), ["mine.o", "zz.txt"]);
    assert_eq!(fs::read_to_string(b.join("zz.txt")).expect("it is there"), "new");

    // Without the filter everything that was held back comes, and nothing is a conflict.
    let all = scratch.sync(&a, &b, &[]);
    assert_eq!(all.conflicts(), 0);
    assert_eq!(names(&b), names(&a));
    scratch.expect_quiet(&a, &b);
}

#[test]
fn what_a_filtered_replica_passes_on_is_no_more_than_it_knows() {
    let scratch = Scratch::new();
    let (a, b, c) = (scratch.directory("a"), scratch.directory("b"), scratch.directory("c"));
    for path in ["1.txt", "2.o", "3.txt"] {
        write(&a, path, path);
    }
    let filter = scratch.path("filter");
    fs::write(&filter, "*.o\n").expect("writable");
    scratch.sync(&a, &b, &["--filter", filter.to_str().expect("UTF-8")]);
    scratch.sync(&b, &c, &[]);
    assert_eq!(names(&c), ["1.txt", "3.txt"]);
    // C learned of B what B knows, so from A it lacks just what B did not have.
    let last = scratch.sync(&a, &c, &[]);
    assert_eq!(last.updates(), 1);
    assert_eq!(names(&c), ["1.txt", "2.o", "3.txt"]);
}

#[test]
fn a_filter_that_cannot_be_read_is_said_in_one_line() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("a"), scratch.path("b"));
    let filter = scratch.path("filter");
    let try_it = || {
        let mut arguments = vec!["sync".into(), a.clone().into_os_string(), b.clone().into_os_string()];
        arguments.extend(["--filter".into(), filter.clone().into_os_string()]);
        arguments.extend(["--data-dir".into(), scratch.path("data").into_os_string()]);
        run(arguments)
    };
    try_it().expect_code(2).expect_line("the filter cannot be read");
    fs::write(&filter, "{a\n").expect("writable");
    try_it().expect_code(2).expect_line("\"{a\"");
    assert!(!b.exists());
}
