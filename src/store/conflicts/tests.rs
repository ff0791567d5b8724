//! Tests of the pure part; the tables are tested with the store.
