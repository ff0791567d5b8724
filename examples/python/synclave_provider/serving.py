"""A server for one service, and files that are replaced as a whole."""
import concurrent.futures
import os

import grpc


def serve(add_to_server, service, address="127.0.0.1:0"):
    """Serves until the process ends. The first line that it prints is its address."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    add_to_server(service, server)
    host, _, port = address.rpartition(":")
    print(f"http://{host}:{server.add_insecure_port(f'{host}:{port}')}", flush=True)
    server.start()
    server.wait_for_termination()


def replace_file(path, content, modified=None):
    """All of the content or nothing of it, and durable. `modified`: the file's time, in nanoseconds since 1970."""
    temporary = path.with_name(".incoming")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if modified is not None:
        os.utime(temporary, ns=(modified, modified))
    os.replace(temporary, path)
