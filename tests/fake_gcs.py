"""A Google Cloud Storage of this host over HTTP, in memory: generations and preconditions are those of its JSON API.

`gcp-storage-emulator` sends no `x-goog-generation` with an object's content, which TensorStore wants ("Malformed
StorageGeneration"), and takes writes whose `ifGenerationMatch` does not hold.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

OBJECT = re.compile(r'/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)')
REWRITE = re.compile(r'/storage/v1/b/[^/]+/o/([^/]+)/(?:rewriteTo|copyTo)/b/[^/]+/o/([^/]+)')


class Store:
  """One bucket's objects, their content and generation by name."""

  def __init__(self) -> None:
    self.lock = threading.RLock()
    self.objects: dict[str, tuple[bytes, int]] = {}
    self.uploads: dict[str, tuple[str, dict[str, str], bytes]] = {}
    self.count = 0
    self.written: list[str] = []
    self.failing: list[str] = []

  def holds(self, name: str, query: dict[str, str]) -> int:
    """The status of a precondition that does not hold; 0 where all do."""
    generation = self.objects.get(name, (b'', 0))[1]
    if 'ifGenerationMatch' in query and int(query['ifGenerationMatch']) != generation:
      return 412
    return 304 if query.get('ifGenerationNotMatch') == str(generation) else 0

  def number(self) -> int:
    self.count += 1
    return self.count

  def put(self, name: str, content: bytes, query: dict[str, str]) -> int:
    with self.lock:
      if any(part in name for part in self.failing):
        return 403
      if status := self.holds(name, query):
        return status
      self.written.append(name)
      self.objects[name] = content, self.number()
      return 200

  def describe(self, name: str) -> dict[str, Any]:
    content, generation = self.objects[name]
    digest = base64.b64encode(hashlib.md5(content).digest()).decode()
    times = dict.fromkeys(('timeCreated', 'updated'), '2026-01-01T00:00:00.000Z')
    known = {'kind': 'storage#object', 'name': name, 'bucket': 'bucket', 'size': str(len(content)), 'md5Hash': digest}
    return {**known, 'generation': str(generation), 'etag': str(generation), **times}


class Handler(BaseHTTPRequestHandler):
  """Answers one connection's requests."""

  protocol_version = 'HTTP/1.1'
  store: Store

  def log_message(self, *_: Any) -> None:
    pass

  def handle(self) -> None:
    with contextlib.suppress(ConnectionError):  # The client was killed.
      super().handle()

  def answer(self, status: int, content: bytes | dict[str, Any] = b'', **headers: str) -> None:
    if isinstance(content, dict):
      content, headers = json.dumps(content).encode(), {'Content-Type': 'application/json', **headers}
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    if status not in (204, 304):
      self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if status not in (204, 304):
      self.wfile.write(content)

  def body(self) -> bytes:
    if self.headers.get('Transfer-Encoding') != 'chunked':
      return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    parts = []
    while size := int(self.rfile.readline().strip() or b'0', 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b''.join(parts)

  def read_request(self) -> tuple[str, dict[str, str], bytes]:
    parts = urlsplit(self.path)
    return parts.path, dict(parse_qsl(parts.query)), self.body()

  def do_GET(self) -> None:
    path, query, _ = self.read_request()
    found, store = OBJECT.fullmatch(path), self.store
    with store.lock:
      if path.endswith('/o'):
        self.answer(200, self.listed(query))
      elif not found:
        self.answer(200, {'kind': 'storage#bucket', 'name': 'bucket', 'id': 'bucket', 'metageneration': '1'})
      elif (name := unquote(found[2])) not in store.objects:
        self.answer(404, {'error': {'code': 404, 'message': f'No such object: {name}'}})
      elif status := store.holds(name, query):
        self.answer(status)
      elif query.get('alt') == 'media':
        self.content(*store.objects[name])
      else:
        self.answer(200, store.describe(name))

  def content(self, content: bytes, generation: int) -> None:
    headers, span = (
      {'x_goog_generation': str(generation)},
      re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers['Range'] or ''),
    )
    if not span:
      self.answer(200, content, **headers)
      return
    first = int(span[1]) if span[1] else max(0, len(content) - int(span[2]))
    last = min(int(span[2]) if span[1] and span[2] else len(content) - 1, len(content) - 1)
    if first >= len(content):
      self.answer(416, **headers)
      return
    self.answer(206, content[first : last + 1], Content_Range=f'bytes {first}-{last}/{len(content)}', **headers)

  def listed(self, query: dict[str, str]) -> dict[str, Any]:
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
    names = [name for name in sorted(self.store.objects) if name.startswith(prefix)]
    names = [
      n for n in names if query.get('startOffset', '') <= n and (not query.get('endOffset') or n < query['endOffset'])
    ]
    prefixes = set()
    if delimiter:
      deeper = {name: name[len(prefix) :].partition(delimiter) for name in names}
      prefixes = {prefix + first + delimiter for first, found, _ in deeper.values() if found}
      names = [name for name in names if not deeper[name][1]]
    listed: dict[str, Any] = {'items': [self.store.describe(name) for name in names], 'prefixes': sorted(prefixes)}
    return {'kind': 'storage#objects', **{key: value for key, value in listed.items() if value}}

  def do_POST(self) -> None:
    path, query, body = self.read_request()
    store = self.store
    if path.startswith('/batch'):
      self.batch(body)
    elif found := REWRITE.fullmatch(path):
      source, target = unquote(found[1]), unquote(found[2])
      if source not in store.objects:
        self.answer(404, {'error': {'code': 404, 'message': 'No such object'}})
        return
      store.put(target, store.objects[source][0], query)
      self.answer(200, {'done': True, 'resource': store.describe(target)})
    elif 'upload_id' in query:
      self.resume(query['upload_id'], body)
    elif query.get('uploadType') == 'resumable':
      name = query.get('name') or json.loads(body)['name']
      number = str(store.number())
      store.uploads[number] = name, query, b''
      self.answer(200, {}, Location=f'http://{self.headers["Host"]}{path}?upload_id={number}')
    else:
      name = query.get('name', '')
      if query.get('uploadType') == 'multipart':
        bound = re.findall(r'boundary=["\']?([^"\';]+)', self.headers['Content-Type'])[0].encode()
        _, described, content, _ = body.split(b'--' + bound)
        name = json.loads(described.split(b'\n\n' if b'\r\n' not in described else b'\r\n\r\n', 1)[1])['name']
        body = re.split(rb'\r?\n\r?\n', content, maxsplit=1)[1]
        body = body[:-2] if body.endswith(b'\r\n') else body[:-1]
      self.reply(name, body, query)

  do_PUT = do_POST

  def reply(self, name: str, content: bytes, query: dict[str, str]) -> None:
    status = self.store.put(name, content, query)
    message = {'error': {'code': status, 'message': 'At least one of the pre-conditions you specified did not hold.'}}
    self.answer(status, self.store.describe(name) if status == 200 else message)

  def resume(self, number: str, body: bytes) -> None:
    name, query, before = self.store.uploads[number]
    content = before + body
    if (self.headers.get('Content-Range') or '').endswith('/*') and body:
      self.store.uploads[number] = name, query, content
      self.answer(308, Range=f'bytes=0-{len(content) - 1}')
    else:
      self.reply(name, content, query)

  def removed(self, path: str, query: dict[str, str]) -> int:
    found = OBJECT.fullmatch(path)
    name = unquote(found[2]) if found else ''
    with self.store.lock:
      status = 404 if name not in self.store.objects else self.store.holds(name, query)
      if not status:
        del self.store.objects[name]
    return status or 204

  def do_DELETE(self) -> None:
    path, query, _ = self.read_request()
    status = self.removed(path, query)
    self.answer(status, {} if status == 204 else {'error': {'code': status, 'message': 'No such object'}})

  def batch(self, body: bytes) -> None:
    answers = []
    for i, target in enumerate(re.findall(rb'DELETE (\S+) HTTP', body), 1):
      status = self.removed(urlsplit(target.decode()).path, {})
      head = f'--b\r\nContent-Type: application/http\r\nContent-ID: <response-{i}>\r\n\r\n'
      answers.append(f'{head}HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n\r\n')
    self.answer(200, f'{"".join(answers)}--b--'.encode(), Content_Type='multipart/mixed; boundary=b')


class Server(ThreadingHTTPServer):
  """Serves `gs://bucket` on a free port of this host.

  Attributes:
    store: its objects; those whose name holds a part of `failing` cannot be written.
  """

  daemon_threads = True
  request_queue_size = 128

  def __init__(self) -> None:
    self.store = Store()
    super().__init__(('127.0.0.1', 0), type('Bound', (Handler,), {'store': self.store}))
    self.address = f'http://127.0.0.1:{self.server_port}'
    threading.Thread(target=self.serve_forever, daemon=True).start()

  def environment(self) -> dict[str, str]:
    """What sends every client of a process here."""
    return {
      'STORAGE_EMULATOR_HOST': self.address,
      'TENSORSTORE_GCS_HTTP_URL': self.address,
      'GOOGLE_CLOUD_PROJECT': 'project',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    }


if __name__ == '__main__':
  server = Server()
  print(server.address, flush=True)
  os.read(sys.stdin.fileno(), 1)
