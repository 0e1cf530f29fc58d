"""Doze's runtime client for Python functions.

It loads the handler, polls the Runtime API at $AWS_LAMBDA_RUNTIME_API and calls the handler, one
event at a time. What a function does not use is not imported: the socket is the interpreter's own
_socket, JSON goes through the interpreter's C code, and logging, traceback and json come only when
something asks for them. It runs with -S and on Python 3.8 or later.

Started with the argument "parked" it first waits for a function, having done beforehand what does
not depend on it: see the section "parked".
"""

import sys
import time
import builtins
import os
import _socket

_API = "/2018-06-01/runtime/"


class Fault(Exception):
    """What AWS reports with an error type of its own ("Runtime.ImportModuleError")."""

    def __init__(self, kind, message, trace=None):
        Exception.__init__(self, message)
        self.kind = kind
        self.message = message
        self.trace = trace or []


# ---------------------------------------------------------------- JSON

def _float(value):
    # decimal.Decimal is a float to AWS; whoever made one has imported decimal.
    decimal = sys.modules.get("decimal")
    if decimal is not None and isinstance(value, decimal.Decimal):
        return float(value)
    raise TypeError("Object of type %s is not JSON serializable" % type(value).__name__)


try:
    import _json

    class _Scanner:
        strict = True
        object_hook = None
        object_pairs_hook = None
        parse_float = float
        parse_int = int
        parse_constant = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__
        memo = {}

    _scan = _json.make_scanner(_Scanner())

    def _encoder(quote):
        def dumps(value):
            # A new table of what is being written, for the check for circles.
            return "".join(_json.make_encoder({}, _float, quote, None, ": ", ", ", False, False, True)(value, 0))
        return dumps

    _dumps_text = _encoder(_json.encode_basestring)
    _dumps_ascii = _encoder(_json.encode_basestring_ascii)
except (ImportError, AttributeError):
    _scan = None

    def _dumps_text(value):
        import json
        return json.dumps(value, default=_float, ensure_ascii=False)

    def _dumps_ascii(value):
        import json
        return json.dumps(value, default=_float)


def loads(data):
    text = data.decode("utf-8")
    if _scan is not None:
        stripped = text.strip(" \t\r\n")
        try:
            value, end = _scan(stripped, 0)
            if end == len(stripped):
                return value
        except StopIteration:
            pass
    import json  # which words the error
    return json.loads(text)


def dumps(value):
    text = _dumps_text(value)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can carry it
        return _dumps_ascii(value).encode("ascii")


# ---------------------------------------------------------------- Runtime API

class Client:
    """A Runtime API client on one kept connection. The response and the next poll leave in one
    write; any HTTP/1.1 server takes that, and one that closes the connection is polled anew."""

    def __init__(self, address):
        host, _, port = address.partition("/")[0].rpartition(":")
        if not host:
            host, port = port, "80"
        self._address = (host.strip("[]"), int(port))
        self._poll = ("GET %sinvocation/next HTTP/1.1\r\nHost: %s\r\nUser-Agent: doze-python\r\n\r\n"
                      % (_API, address)).encode("latin-1")
        self._tail = (" HTTP/1.1\r\nHost: %s\r\nUser-Agent: doze-python\r\nContent-Type: application/json\r\n"
                      % address)
        self._socket = None
        self._rest = b""
        self._polled = False

    def connect(self):
        family = _socket.AF_INET6 if ":" in self._address[0] else _socket.AF_INET
        s = _socket.socket(family, _socket.SOCK_STREAM)
        try:
            s.connect(self._address)
        except OSError:
            if self._address[0].replace(".", "").isdigit():
                raise
            info = _socket.getaddrinfo(self._address[0], self._address[1], 0, _socket.SOCK_STREAM)[0]
            s.close()
            s = _socket.socket(info[0], info[1], info[2])
            s.connect(info[4])
        s.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._socket = s
        self._rest = b""

    def _drop(self):
        self._polled = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def next(self):
        """Waits for an event: its body and its headers with lower-case names."""
        failures = 0
        while True:
            try:
                if not self._polled:
                    if self._socket is None:
                        self.connect()
                    self._socket.sendall(self._poll)
                    self._polled = True
                status, headers, body = self._answer()
                self._polled = False
            except OSError as e:
                self._drop()
                failures += 1
                if failures > 3:
                    raise RuntimeError("Runtime API is gone: %s" % e)
                continue
            if status != 200:
                raise RuntimeError("Runtime API answered %d to next: %s" % (status, body.decode("utf-8", "replace")))
            return body, headers

    def post(self, path, body, error_type=None, poll=True):
        """Sends a result. With poll the request for the next event goes with it."""
        head = "POST " + _API + path + self._tail
        if error_type is not None:
            head += "Lambda-Runtime-Function-Error-Type: %s\r\n" % "".join(
                c if "!" <= c <= "~" else "?" for c in error_type)
        request = (head + "Content-Length: %d\r\n\r\n" % len(body)).encode("latin-1") + body
        if poll:
            request += self._poll
        try:
            if self._socket is None:
                self.connect()
            self._polled = poll
            sent_all = True
            try:
                self._socket.sendall(request)
            except OSError:
                sent_all = False  # refused before it was read: the answer may be there
            status = self._answer()[0]
            if not sent_all:
                self._drop()
            return status
        except OSError as e:
            self._drop()
            sys.stderr.write("doze: result not delivered: %s\n" % e)
            return 0

    def _more(self):
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("connection closed by the Runtime API")
        return data

    def _answer(self):
        rest = self._rest
        while True:
            end = rest.find(b"\r\n\r\n")
            while end < 0:
                if len(rest) > 1 << 20:
                    raise ConnectionResetError("answer without an end")
                rest += self._more()
                end = rest.find(b"\r\n\r\n")
            lines = rest[:end].decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ", 2)[1])
            rest = rest[end + 4:]
            if status >= 200:
                break
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = headers.get("content-length")
        closing = headers.get("connection", "").lower() == "close"
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body, rest = self._chunks(rest)
        elif length is not None:
            n = int(length)
            if len(rest) < n:
                parts = [rest]
                have = len(rest)
                while have < n:
                    data = self._socket.recv(min(n - have, 1 << 20))
                    if not data:
                        raise ConnectionResetError("answer cut short")
                    parts.append(data)
                    have += len(data)
                rest = b"".join(parts)
            body, rest = rest[:n], rest[n:]
        elif status == 204 or status == 304:
            body = b""
        else:
            parts = [rest]
            while True:
                data = self._socket.recv(65536)
                if not data:
                    break
                parts.append(data)
            body, rest, closing = b"".join(parts), b"", True
        self._rest = rest
        if closing:
            self._drop()
        return status, headers, body

    def _chunks(self, rest):
        parts = []
        while True:
            while b"\r\n" not in rest:
                rest += self._more()
            line, _, rest = rest.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                break
            while len(rest) < size + 2:
                rest += self._more()
            parts.append(rest[:size])
            rest = rest[size + 2:]
        while True:  # trailers
            while b"\r\n" not in rest:
                rest += self._more()
            line, _, rest = rest.partition(b"\r\n")
            if not line:
                return b"".join(parts), rest


# ---------------------------------------------------------------- context

class CognitoIdentity:
    __slots__ = ["cognito_identity_id", "cognito_identity_pool_id"]

    def __init__(self):
        self.cognito_identity_id = None
        self.cognito_identity_pool_id = None

    def __repr__(self):
        return "CognitoIdentity([cognito_identity_id=%s,cognito_identity_pool_id=%s])" % (
            self.cognito_identity_id, self.cognito_identity_pool_id)


class ClientInfo:
    __slots__ = ["installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name"]

    def __repr__(self):
        return "Client([%s])" % ",".join("%s=%s" % (n, getattr(self, n)) for n in self.__slots__)


class ClientContext:
    __slots__ = ["custom", "env", "client"]

    def __repr__(self):
        return "ClientContext([custom=%s,env=%s,client=%s])" % (self.custom, self.env, self.client)


def _client_context(text):
    if not text:
        return None
    # The header's bytes are UTF-8, read as latin-1.
    value = loads(text.encode("latin-1"))
    context = ClientContext()
    context.custom = context.env = context.client = None
    if isinstance(value, dict):
        context.custom = value.get("custom")
        context.env = value.get("env")
        client = value.get("client")
        if isinstance(client, dict):
            context.client = ClientInfo()
            for name in ClientInfo.__slots__:
                setattr(context.client, name, client.get(name))
    return context


def _identity(text):
    identity = CognitoIdentity()
    if text:
        value = loads(text.encode("latin-1"))
        if isinstance(value, dict):
            identity.cognito_identity_id = value.get("cognitoIdentityId")
            identity.cognito_identity_pool_id = value.get("cognitoIdentityPoolId")
    return identity


class LambdaContext:
    """What AWS passes as the handler's second argument."""

    function_name = function_version = memory_limit_in_mb = log_group_name = log_stream_name = None

    @classmethod
    def _of(cls, environ):
        cls.function_name = environ.get("AWS_LAMBDA_FUNCTION_NAME")
        cls.function_version = environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        cls.memory_limit_in_mb = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        cls.log_group_name = environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        cls.log_stream_name = environ.get("AWS_LAMBDA_LOG_STREAM_NAME")

    def __init__(self, headers):
        get = headers.get
        self.aws_request_id = get("lambda-runtime-aws-request-id")
        self.invoked_function_arn = get("lambda-runtime-invoked-function-arn")
        self._deadline_ms = int(get("lambda-runtime-deadline-ms", 0))
        self.client_context = _client_context(get("lambda-runtime-client-context"))
        self.identity = _identity(get("lambda-runtime-cognito-identity"))
        self.tenant_id = get("lambda-runtime-aws-tenant-id")

    def get_remaining_time_in_millis(self):
        return max(int(self._deadline_ms - time.time() * 1000), 0)

    def log(self, message):
        sys.stdout.write(str(message))

    def __repr__(self):
        return ("LambdaContext([aws_request_id=%s,log_group_name=%s,log_stream_name=%s,function_name=%s,"
                "memory_limit_in_mb=%s,function_version=%s,invoked_function_arn=%s,client_context=%s,identity=%s,"
                "tenant_id=%s])"
                % (self.aws_request_id, self.log_group_name, self.log_stream_name, self.function_name,
                   self.memory_limit_in_mb, self.function_version, self.invoked_function_arn,
                   self.client_context, self.identity, self.tenant_id))


# ---------------------------------------------------------------- logging

_request_id = ""


def _set_up_logging(logging):
    """Gives the root logger AWS's handler, as soon as the function imports logging."""

    class LambdaLoggerHandler(logging.Handler):
        def emit(self, record):
            try:
                sys.stdout.write(self.format(record))
            except Exception:
                self.handleError(record)

    class LambdaLoggerFilter(logging.Filter):
        def filter(self, record):
            record.aws_request_id = _request_id
            return 1

    logging.Formatter.converter = time.gmtime
    handler = LambdaLoggerHandler()
    handler.setFormatter(logging.Formatter(
        "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n", "%Y-%m-%dT%H:%M:%S"))
    handler.addFilter(LambdaLoggerFilter())
    logging.root.addHandler(handler)


class _LoggingLoader:
    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        _set_up_logging(module)


class _LoggingFinder:
    """Waits for the first import of logging, which costs a cold start milliseconds."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "logging":
            return None
        sys.meta_path.remove(cls)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _LoggingLoader(spec.loader)
                return spec
        return None


# ---------------------------------------------------------------- errors

def _error(message, kind, trace, request_id=""):
    return {"errorMessage": message or "", "errorType": kind or "", "requestId": request_id or "",
            "stackTrace": trace or []}


def _describe(exc, request_id=""):
    """The error object of an exception, its stack trace beginning with the function's own frames."""
    if isinstance(exc, Fault):
        return _error(exc.message, exc.kind, exc.trace, request_id)
    import traceback
    frames = []
    for f in traceback.extract_tb(exc.__traceback__):
        frames.append((f.filename, f.lineno, f.name, f.line))
    for n, frame in enumerate(frames):
        if not (frame[0].startswith("/var/runtime/") or frame[0].startswith("<frozen importlib") or frame[0] == __file__):
            frames = frames[n:]
            break
    return _error(_text(exc), type(exc).__name__, traceback.format_list(frames), request_id)


def _text(exc):
    try:
        return str(exc)
    except Exception:
        return "<unprintable %s object>" % type(exc).__name__


def _log_error(error):
    line = "[ERROR] " + error["errorType"]
    if error["errorMessage"]:
        line += ": " + error["errorMessage"]
    trace = error["stackTrace"]
    lines = [line]
    if error["requestId"] or trace:
        lines.append("Traceback (most recent call last):")
    for entry in trace:
        lines.extend(entry.splitlines())
    sys.stdout.write("\n".join(lines) + "\n")


def _flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # the function closed or replaced it


# ---------------------------------------------------------------- handler

def _load(handler):
    module_name, dot, function_name = handler.rpartition(".")
    if not dot or not module_name or not function_name:
        raise Fault("Runtime.MalformedHandlerName",
                    "Bad handler '%s': not enough values to unpack (expected 2, got 1)" % handler)
    if module_name.split(".")[0] in sys.builtin_module_names:
        raise Fault("Runtime.BuiltInModuleConflict",
                    "Cannot use built-in module %s as a handler module" % module_name)
    dotted = module_name.replace("/", ".")
    try:
        __import__(dotted)
    except ImportError as e:
        raise Fault("Runtime.ImportModuleError", "Unable to import module '%s': %s" % (module_name, e))
    except SyntaxError as e:
        raise Fault("Runtime.UserCodeSyntaxError", "Syntax error in module '%s': %s" % (module_name, e),
                    ['  File "%s" Line %s\n    %s' % (e.filename, e.lineno, (e.text or "").rstrip("\n"))])
    try:
        return getattr(sys.modules[dotted], function_name)
    except AttributeError:
        raise Fault("Runtime.HandlerNotFound",
                    "Handler '%s' missing on module '%s'" % (function_name, module_name))


def _prepare():
    """Makes the interpreter look as it does on AWS."""
    mine = os.path.dirname(os.path.abspath(sys.argv[0])) if sys.argv and sys.argv[0] else ""
    if sys.path and sys.path[0] == mine:
        del sys.path[0]
    sys.argv = [""]
    # What functions use of the site module, which is not loaded.
    builtins.exit = builtins.quit = sys.exit
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    logging = sys.modules.get("logging")
    if logging is not None:
        _set_up_logging(logging)
    else:
        sys.meta_path.insert(0, _LoggingFinder)


def _adopt():
    """Takes the function's environment in: the places its modules are in, its name."""
    version = "python%d.%d" % sys.version_info[:2]
    root = os.environ.get("LAMBDA_TASK_ROOT", "/var/task")
    sys.path[0:0] = [root] + [p for p in ("/opt/python/lib/%s/site-packages" % version, "/opt/python")
                              if os.path.isdir(p)]
    LambdaContext._of(os.environ)


def _call(handler, body, headers):
    """Runs the handler; the result as bytes, and the error's type or None."""
    request_id = headers.get("lambda-runtime-aws-request-id", "")
    try:
        try:
            event = loads(body)
        except Exception as e:
            raise Fault("Runtime.UnmarshalError", "Unable to unmarshal input: %s" % _text(e))
        try:
            context = LambdaContext(headers)
        except Exception as e:
            raise Fault("Runtime.LambdaContextUnmarshalError", "Unable to parse the context: %s" % _text(e))
        result = handler(event, context)
        if isinstance(result, bytes):
            return result, None
        try:
            return dumps(result), None
        except Exception as e:
            raise Fault("Runtime.MarshalError", "Unable to marshal response: %s" % _text(e))
    except Exception as e:
        error = _describe(e, request_id)
    _log_error(error)
    return dumps(error), error["errorType"]


# ---------------------------------------------------------------- parked

# What most functions import. The owner of a function that brings a module of such a name, or of one that
# these import, gets an interpreter that was not parked: see Shadows in package runtimes.
_WARM = ("json", "logging", "datetime", "traceback", "socket", "base64", "urllib.parse", "typing", "random", "hashlib",
         "uuid", "decimal")


def _exercise():
    """Runs once what every function needs, so that its first time is not the function's first call."""
    for name in _WARM:
        __import__(name)
    compile("def handler(event, context):\n    return {'a': [event]}\n", "warm.py", "exec")
    headers = {"lambda-runtime-aws-request-id": "", "lambda-runtime-deadline-ms": "0",
               "lambda-runtime-invoked-function-arn": ""}
    _call(lambda event, context: {"left": context.get_remaining_time_in_millis(), "event": event},
          b'{"a": [1, 2.5, "x", null, true]}', headers)


def _wait():
    """Says on the standard input, which is a socket, that this process waits; then reads from it the
    environment of its function, and becomes that function's."""
    os.write(0, b".")
    parts = []
    while True:
        part = os.read(0, 65536)
        if not part:
            break
        parts.append(part)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    message = b"".join(parts)
    if not message.endswith(b"\0"):
        os._exit(0)  # given up: there is no function
    environ = os.environb
    zone = environ.get(b"TZ")
    coerced = environ.get(b"LC_CTYPE")  # set by the interpreter itself, as it will be for the function
    environ.clear()
    if coerced is not None:
        environ[b"LC_CTYPE"] = coerced
    for variable in message[:-1].split(b"\0"):
        name, _, value = variable.partition(b"=")
        environ[name] = value
    if environ.get(b"TZ") != zone:
        time.tzset()
    os.chdir("/var/task")


def main():
    global _request_id
    client = Client(os.environ["AWS_LAMBDA_RUNTIME_API"])
    parked = sys.argv[1:] == ["parked"]
    _prepare()
    if parked:
        _exercise()
        client.connect()
        _wait()
    _adopt()
    try:
        handler = _load(os.environ.get("_HANDLER", ""))
    except Exception as e:
        error = _describe(e)
        _log_error(error)
        _flush()
        client.post("init/error", dumps(error), error["errorType"], poll=False)
        sys.exit(1)
    environ = os.environ
    trace = None
    while True:
        body, headers = client.next()
        _request_id = headers.get("lambda-runtime-aws-request-id", "")
        if headers.get("lambda-runtime-trace-id") != trace:
            trace = headers.get("lambda-runtime-trace-id")
            if trace is None:
                environ.pop("_X_AMZN_TRACE_ID", None)
            else:
                environ["_X_AMZN_TRACE_ID"] = trace
        result, error_type = _call(handler, body, headers)
        _flush()
        if error_type is None:
            client.post("invocation/%s/response" % _request_id, result)
        else:
            client.post("invocation/%s/error" % _request_id, result, error_type)


if __name__ == "__main__":
    main()
