use super::harness::{PLAN, Replica, begin, end, key, request};
use crate::knowledge::{FilterFlags, FilterRequest, FilteringType, ItemId, Knowledge, SyncFilter};
use crate::provider::{CallError, Provider};
use crate::types::{Hresult, ProviderRole};

fn listed(items: &[&str]) -> FilterRequest {
    let items = items.iter().map(|item| ItemId::from(*item)).collect();
    FilterRequest { filter: SyncFilter::ItemList(items), filtering_type: FilteringType::CurrentItemsOnly }
}

fn refused(result: Result<(), CallError>) -> Hresult {
    result.expect_err("refused").hresult()
}

fn nothing(replica: &Replica) -> Knowledge {
    Knowledge::new(replica.knowledge().item_format())
}

#[tokio::test]
async fn a_list_of_items_is_all_that_a_source_sends_and_speaks_of() {
    let a = Replica::new("a");
    for name in ["1", "2", "3", "4"] {
        a.store.write(name, name, 1);
    }
    let session = key();
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    a.provider.add_filter(session, listed(&["2", "4", "none"])).await.unwrap();
    let batch = a.provider.get_change_batch(session, request(nothing(&a), PLAN)).await.unwrap();
    let sent: Vec<_> = batch.changes().map(|(_, change)| change.item_id.to_string()).collect();
    assert_eq!(sent, ["2", "4"]);
    assert_eq!((batch.filter_flags, batch.remaining_updates), (FilterFlags::ITEM_LIST, Some(0)));
    let learned = batch.learned_knowledge();
    let list = ["2", "4", "none"].map(ItemId::from);
    assert!(learned.project_onto_items(&list).contains(&learned), "nothing is learned of other items");
    assert!(learned.contains(&a.knowledge().project_onto_items(&list)), "and all of these");
    // Who learned it lacks nothing of the list, and all of the rest once the filter is another.
    let again = a.provider.get_change_batch(session, request(learned.clone(), PLAN)).await.unwrap();
    assert_eq!((again.changes().count(), again.is_last_batch), (0, true));
    a.provider.add_filter(session, listed(&["1", "2"])).await.unwrap();
    let more = a.provider.get_change_batch(session, request(learned, PLAN)).await.unwrap();
    assert_eq!(more.changes().map(|(_, change)| change.item_id.to_string()).collect::<Vec<_>>(), ["1"]);
    a.provider.end_session(end(session)).await.unwrap();
}

#[tokio::test]
async fn a_filter_that_is_not_known_is_refused_and_changes_nothing() {
    let a = Replica::new("a");
    a.store.write("1", "1", 1);
    let session = key();
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    let custom = SyncFilter::Custom { name: "sql".to_owned(), definition: "age > 3".into() };
    let current = FilteringType::CurrentItemsOnly;
    let wanted = FilterRequest { filter: custom, filtering_type: current };
    assert_eq!(refused(a.provider.add_filter(session, wanted).await), Hresult::SYNC_E_FILTER_NOT_SUPPORTED);
    let ghosts = FilteringType::CurrentItemsAndVersionsForMovedOutItems;
    let wanted = FilterRequest { filtering_type: ghosts, ..listed(&["2"]) };
    assert_eq!(refused(a.provider.add_filter(session, wanted).await), Hresult::SYNC_E_FILTER_NOT_SUPPORTED);
    let batch = a.provider.get_change_batch(session, request(nothing(&a), PLAN)).await.unwrap();
    assert_eq!((batch.changes().count(), batch.filter_flags), (1, FilterFlags::NONE));
    a.provider.end_session(end(session)).await.unwrap();
}

/// `windows-sync.md` 4.9, point 5.
#[tokio::test]
async fn a_filtered_source_does_not_list_all_items() {
    let a = Replica::new("a");
    let session = key();
    a.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    a.provider.add_filter(session, listed(&["1"])).await.unwrap();
    let asked = request(nothing(&a), PLAN);
    let listing = a.provider.get_full_enumeration_change_batch(session, asked, ItemId::default()).await;
    assert_eq!(refused(listing.map(drop)), Hresult::SYNC_E_ITEM_LIST_FILTERED_FULL_ENUMERATION_NOT_SUPPORTED);
    a.provider.end_session(end(session)).await.unwrap();
}
