"""Watches the sessions of a Synclave coordinator. See the README for how to generate the two modules."""
import sys

import grpc
from synclave.v1 import enums_pb2, sync_info_service_pb2 as sync_info
from synclave.v1.sync_info_service_pb2_grpc import SyncInfoServiceStub

channel = grpc.insecure_channel(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
for message in SyncInfoServiceStub(channel).WatchSyncInfo(sync_info.WatchSyncInfoRequest()):
    for entry in message.changes.entries:
        info = entry.sync_info.dfsr_sync_info
        if entry.WhichOneof("entry") == "sync_info":
            state = enums_pb2.SyncState.Name(info.state)
            print(f"{info.partner_name} -> {info.member_name}: {state}, {info.updates_transferred} changes, "
                  f"{info.bytes_transferred} bytes", flush=True)
