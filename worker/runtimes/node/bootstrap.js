'use strict';

// Doze's runtime client for Node.js functions: it loads the handler, polls the Runtime API at
// $AWS_LAMBDA_RUNTIME_API and calls the handler, one event at a time. It speaks HTTP over a plain
// socket, and the response and the next poll leave in one write. Node.js 18 or later.
//
// Started with the argument "parked" it first waits for a function, having done beforehand what does
// not depend on it: see the section "parked".

const net = require('net');
const fs = require('fs');
const path = require('path');
const util = require('util');
const { pathToFileURL } = require('url');

const API = '/2018-06-01/runtime/';

let requestId;

// ------------------------------------------------------------------ console

function writeOut(fd, text) {
  let bytes = Buffer.from(text, 'utf8');
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(fs.writeSync(fd, bytes));
    } catch (err) {
      if (err.code !== 'EAGAIN') return; // nobody reads any more
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

function logLine(level, message) {
  const id = requestId === undefined ? 'undefined' : requestId;
  writeOut(1, `${new Date().toISOString()}\t${id}\t${level}\t${message}\n`);
}

function patchConsole() {
  const levels = { log: 'INFO', info: 'INFO', debug: 'DEBUG', warn: 'WARN', error: 'ERROR', trace: 'TRACE', fatal: 'FATAL' };
  for (const [method, level] of Object.entries(levels)) {
    console[method] = (...args) => logLine(level, util.format(...args));
  }
}

// ------------------------------------------------------------------ errors

class RuntimeError extends Error {
  constructor(name, message, cause) {
    super(message);
    this.name = name;
    if (cause && cause.stack) this.stack = `${name}: ${message}\n${cause.stack.split('\n').slice(1).join('\n')}`;
  }
}

function isError(value) {
  return util.types.isNativeError(value) ||
    (value !== null && typeof value === 'object' && typeof value.name === 'string' &&
     typeof value.message === 'string' && typeof value.stack === 'string');
}

// The error object that AWS puts into the answer.
function errorObject(error) {
  try {
    if (isError(error)) {
      return { errorType: String(error.name), errorMessage: String(error.message), trace: String(error.stack).split('\n') };
    }
    return { errorType: typeof error, errorMessage: String(error), trace: [] };
  } catch (_) {
    return {
      errorType: 'handled',
      errorMessage: 'callback called with Error argument, but there was a problem while retrieving one or more of its message, name, and stack',
      trace: [],
    };
  }
}

function formatted(error) {
  try {
    if (!isError(error)) return '\t' + JSON.stringify(errorObject(error));
    return '\t' + JSON.stringify({
      errorType: error.name, errorMessage: error.message, code: error.code, ...error,
      stack: String(error.stack).split('\n'),
    });
  } catch (_) {
    return '\t' + JSON.stringify(errorObject(error));
  }
}

// ------------------------------------------------------------------ Runtime API

const CHUNK = 64 << 10; // what one read takes at most
const HEAD = 8 << 10; // what is looked at first for the end of a head
const MAX_HEAD = 1 << 20;

// A header's name as it is looked for in a head.
const LENGTH = '\r\ncontent-length:';
const ENCODING = '\r\ntransfer-encoding:';
const CONNECTION = '\r\nconnection:';
const REQUEST_ID = '\r\nlambda-runtime-aws-request-id:';
const DEADLINE = '\r\nlambda-runtime-deadline-ms:';
const ARN = '\r\nlambda-runtime-invoked-function-arn:';
const TRACE_ID = '\r\nlambda-runtime-trace-id:';
const CLIENT_CONTEXT = '\r\nlambda-runtime-client-context:';
const TENANT = '\r\nlambda-runtime-aws-tenant-id:';
const IDENTITY = '\r\nlambda-runtime-cognito-identity:';

// Head is an answer's head. Headers are looked for when they are asked for: most never are.
class Head {
  constructor(text) {
    this.text = text; // status line and headers, each with its end of line
    this.lower = text.toLowerCase(); // Latin-1 keeps its length
    this.status = Number(text.slice(9, 12));
    const length = this.get(LENGTH);
    this.length = length === undefined ? -1 : Number(length);
    const encoding = this.get(ENCODING);
    this.chunked = encoding !== undefined && encoding.toLowerCase() === 'chunked';
    const connection = this.get(CONNECTION);
    this.close = connection !== undefined && connection.toLowerCase() === 'close';
  }

  get(name) {
    const at = this.lower.indexOf(name);
    if (at < 0) return undefined;
    const from = at + name.length;
    return this.text.slice(from, this.text.indexOf('\r\n', from)).trim();
  }
}

// LOST is the answer of a connection that ended without one.
const LOST = new Head('HTTP/1.1 000 \r\n');

function ignore() {}

// headerWord makes of anything what a header may carry.
function headerWord(value) {
  return String(value).replace(/[^!-~]/g, '?');
}

const MAX_TRAILER = 64 << 10; // the error object of a result that failed midway, in bytes

// Client keeps one connection. Answers come in the order of the requests; each request leaves in
// `waiting` who takes its answer: (head, bytes, from, to), the bytes being lent for the call. Polls
// leave onEvent.
//
// The socket reads into one buffer over and over (`onread`): no stream, and nothing allocated.
class Client {
  constructor(address, onEvent) {
    const colon = address.lastIndexOf(':');
    this.host = colon < 0 ? address : address.slice(0, colon).replace(/^\[|\]$/g, '');
    this.port = colon < 0 ? 80 : Number(address.slice(colon + 1));
    this.poll = `GET ${API}invocation/next HTTP/1.1\r\nHost: ${address}\r\nUser-Agent: doze-nodejs\r\n\r\n`;
    this.start = ` HTTP/1.1\r\nHost: ${address}\r\nUser-Agent: doze-nodejs\r\nContent-Type: `;
    this.tail = `${this.start}application/json\r\n`;
    this.onEvent = onEvent;
    this.socket = null;
    this.chunk = Buffer.allocUnsafeSlow(CHUNK);
    this.store = null; // what came of an answer that is not whole yet
    this.kept = 0; // bytes of it
    this.head = null; // of that answer, once it is whole
    this.accepted = undefined; // the last 202, whole: the next is the same
    this.waiting = [];
    this.failures = 0;
    this.held = true;
    this.trouble = null;
  }

  connect() {
    this.store = null;
    this.kept = 0;
    this.head = null;
    const callback = (n) => {
      if (socket === this.socket) this.received(socket, n);
      return true; // read on
    };
    const socket = net.connect({ host: this.host, port: this.port, noDelay: true, onread: { buffer: this.chunk, callback } });
    this.socket = socket;
    socket.on('error', (err) => { this.trouble = err; });
    socket.on('close', () => { if (socket === this.socket) this.lost(); });
    if (!this.held) socket.unref();
  }

  // hold decides whether the connection keeps the event loop alive: only while an event is awaited.
  hold(on) {
    this.held = on;
    if (this.socket === null) return;
    if (on) this.socket.ref();
    else this.socket.unref();
  }

  next() {
    if (this.socket === null) this.connect();
    this.waiting.push(this.onEvent);
    this.socket.write(this.poll, 'latin1');
  }

  // post sends a result; without done the request for the next event goes with it.
  post(where, errorType, body, done) {
    let head = `POST ${API}${where}${this.tail}`;
    if (errorType !== undefined) {
      head += `Lambda-Runtime-Function-Error-Type: ${headerWord(errorType)}\r\n`;
    }
    if (this.socket === null) this.connect();
    head += `Content-Length: ${Buffer.byteLength(body, 'utf8')}\r\n\r\n${body}`;
    if (done === undefined) {
      head += this.poll;
      this.waiting.push(ignore, this.onEvent);
    } else {
      this.waiting.push(done);
    }
    this.socket.write(head, 'utf8');
  }

  // open begins a result that is sent piece by piece, and returns the connection that it goes over.
  open(where, contentType) {
    if (this.socket === null) this.connect();
    this.waiting.push(ignore);
    this.socket.write(`POST ${API}${where}${this.start}${contentType.replace(/[^ -~]/g, '')}\r\n` +
      'Lambda-Runtime-Function-Response-Mode: streaming\r\nTransfer-Encoding: chunked\r\n' +
      'Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n\r\n', 'latin1');
    return this.socket;
  }

  // piece sends one of its pieces; sent is called when there is room for more. A connection that is gone, as it
  // is when the result has become too large, takes them, too.
  piece(socket, bytes, sent) {
    if (socket !== this.socket || bytes.length === 0) {
      process.nextTick(sent);
      return;
    }
    socket.cork();
    socket.write(`${bytes.length.toString(16)}\r\n`, 'latin1');
    socket.write(bytes);
    socket.write('\r\n', 'latin1', () => sent()); // an error is the connection's
    socket.uncork();
  }

  // close ends it, with what it failed of if it has.
  close(socket, object, sent) {
    if (socket !== this.socket) {
      process.nextTick(sent);
      return;
    }
    let trailers = '';
    if (object !== undefined) {
      let body = JSON.stringify(object);
      if (body.length > MAX_TRAILER) body = JSON.stringify({ errorType: object.errorType, errorMessage: object.errorMessage.slice(0, 1024), trace: [] });
      trailers = `Lambda-Runtime-Function-Error-Type: ${headerWord(object.errorType)}\r\n` +
        `Lambda-Runtime-Function-Error-Body: ${Buffer.from(body, 'utf8').toString('base64')}\r\n`;
    }
    socket.write(`0\r\n${trailers}\r\n`, 'latin1', () => sent());
  }

  // received takes the n bytes that are in chunk.
  received(socket, n) {
    if (this.kept === 0) {
      const used = this.parse(socket, this.chunk, n);
      if (used < n && socket === this.socket) this.keep(used, n);
      return;
    }
    this.keep(0, n);
    const used = this.parse(socket, this.store, this.kept);
    if (used === 0 || socket !== this.socket) return;
    this.store.copyWithin(0, used, this.kept);
    this.kept -= used;
    if (this.kept === 0) this.store = null;
  }

  // keep adds to store what is in chunk.
  keep(from, to) {
    const need = this.kept + to - from;
    if (this.store === null || this.store.length < need) {
      const expected = this.head === null ? 0 : Math.min(this.head.length, 8 << 20);
      const bigger = Buffer.allocUnsafeSlow(Math.max(need, 2 * this.kept, expected));
      if (this.store !== null) this.store.copy(bigger, 0, 0, this.kept);
      this.store = bigger;
    }
    this.chunk.copy(this.store, this.kept, from, to);
    this.kept = need;
  }

  // parse hands on the answers that are whole in data's first `end` bytes and returns how many
  // bytes it has used.
  parse(socket, data, end) {
    let at = 0;
    while (at < end) {
      let head = this.head;
      if (head === null) {
        let text = data.toString('latin1', at, Math.min(end, at + HEAD));
        if (this.accepted !== undefined && this.waiting[0] === ignore && text.startsWith(this.accepted)) {
          this.waiting.shift();
          this.failures = 0;
          at += this.accepted.length;
          if (at === end) return at;
          text = text.slice(this.accepted.length);
        }
        let blank = text.indexOf('\r\n\r\n');
        if (blank < 0) {
          if (end - at > HEAD) {
            text = data.toString('latin1', at, end);
            blank = text.indexOf('\r\n\r\n');
          }
          if (blank < 0) {
            if (end - at > MAX_HEAD) socket.destroy();
            return at;
          }
        }
        head = new Head(text.slice(0, blank + 2));
        if (head.status === 202 && !head.close && !head.chunked && text.length >= blank + 4 + head.length) {
          this.accepted = text.slice(0, blank + 4 + head.length);
        }
        at += blank + 4;
        if (head.status < 200) continue;
        this.head = head;
      }
      if (head.chunked) {
        const got = unchunk(data.subarray(at, end));
        if (got === null) return at;
        at += got.used;
        this.answered(head, got.body, 0, got.body.length);
      } else if (head.length >= 0 || head.status === 204) {
        const from = at;
        if (head.length > 0) at += head.length;
        if (at > end) return from;
        this.answered(head, data, from, at);
      } else {
        return at; // ends with the connection
      }
      if (socket !== this.socket) return at;
    }
    return at;
  }

  answered(head, data, from, to) {
    this.head = null;
    this.failures = 0;
    const done = this.waiting.shift();
    if (head.close) {
      const socket = this.socket;
      this.socket = null;
      if (socket !== null) socket.destroy();
      this.pollAgain();
    }
    if (done !== undefined) done(head, data, from, to);
  }

  // lost: the connection ended. A result on its way is taken for delivered or timed out, as the
  // server decides; a poll is sent again.
  lost() {
    this.socket = null;
    const head = this.head;
    if (head !== null && !head.chunked && !(head.length >= 0)) {
      head.close = false;
      this.answered(head, this.store || this.chunk, 0, this.kept);
    }
    while (this.waiting.length > 0 && this.waiting[0] !== this.onEvent) this.waiting.shift()(LOST, this.chunk, 0, 0);
    this.pollAgain();
  }

  pollAgain() {
    if (this.waiting.length === 0 || this.socket !== null) return;
    if (++this.failures > 3) {
      writeOut(2, `doze: Runtime API is gone: ${this.trouble ? this.trouble.message : 'connection closed'}\n`);
      process.exit(1);
    }
    this.waiting = [];
    this.next();
  }
}

function unchunk(all) {
  const parts = [];
  let at = 0;
  for (;;) {
    const eol = all.indexOf('\r\n', at);
    if (eol < 0) return null;
    const size = parseInt(all.toString('latin1', at, eol), 16);
    at = eol + 2;
    if (size === 0) break;
    if (all.length < at + size + 2) return null;
    parts.push(all.subarray(at, at + size));
    at += size + 2;
  }
  for (;;) { // trailers
    const eol = all.indexOf('\r\n', at);
    if (eol < 0) return null;
    if (eol === at) return { body: Buffer.concat(parts), used: at + 2 };
    at = eol + 2;
  }
}

// ------------------------------------------------------------------ handler

function exists(file) {
  try {
    return fs.statSync(file).isFile();
  } catch (_) {
    return false;
  }
}

function isModulePackage(file) {
  for (let dir = path.dirname(file); ; dir = path.dirname(dir)) {
    const file = path.join(dir, 'package.json');
    if (exists(file)) {
      try {
        return JSON.parse(fs.readFileSync(file, 'utf8')).type === 'module';
      } catch (_) {
        return false;
      }
    }
    if (dir === path.dirname(dir) || path.basename(dir) === 'node_modules') return false;
  }
}

// importFile is import(): it waits for top-level await.
function importFile(file) {
  return import(pathToFileURL(file).href);
}

async function loadModule(root, folder, name) {
  const file = path.resolve(root, folder, name);
  if (exists(file)) return require(file);
  if (exists(file + '.js')) return isModulePackage(file) ? importFile(file + '.js') : require(file + '.js');
  if (exists(file + '.mjs')) return importFile(file + '.mjs');
  if (exists(file + '.cjs')) return require(file + '.cjs');
  return require(require.resolve(name, { paths: [root, path.resolve(root, folder)] }));
}

async function loadHandler(root, handler) {
  if (handler.includes('..')) {
    throw new RuntimeError('Runtime.MalformedHandlerName',
      `'${handler}' is not a valid handler name. Use absolute paths when specifying root directories in handler names.`);
  }
  const base = path.basename(handler);
  const folder = handler.slice(0, handler.lastIndexOf(base));
  const match = /^([^.]*)\.(.*)$/.exec(base);
  if (!match) throw new RuntimeError('Runtime.MalformedHandlerName', 'Bad handler');
  let app;
  try {
    app = await loadModule(root, folder, match[1]);
  } catch (err) {
    if (err instanceof SyntaxError) throw new RuntimeError('Runtime.UserCodeSyntaxError', String(err), err);
    if (err && (err.code === 'MODULE_NOT_FOUND' || err.code === 'ERR_MODULE_NOT_FOUND')) {
      throw new RuntimeError('Runtime.ImportModuleError', String(err), err);
    }
    throw err;
  }
  const resolve = (object) => match[2].split('.').reduce((o, key) => (o === undefined || o === null ? undefined : o[key]), object);
  let fn = resolve(app);
  let self = app;
  if (fn === undefined && app && app.default) { // a CommonJS file that was imported
    fn = resolve(app.default);
    self = app.default;
  }
  if (!fn) throw new RuntimeError('Runtime.HandlerNotFound', `${handler} is undefined or not exported`);
  if (typeof fn !== 'function') throw new RuntimeError('Runtime.HandlerNotFound', `${handler} is not a function`);
  if (fn[STREAMING] !== undefined) {
    if (fn[STREAMING] !== 'response') throw new RuntimeError('Runtime.MalformedStreamingHandler', 'Only response streaming is supported.');
    streamed = { highWaterMark: fn[HIGH_WATER_MARK] };
  }
  return fn.bind(self);
}

// ------------------------------------------------------------------ streaming

const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming');
const HIGH_WATER_MARK = Symbol.for('aws.lambda.runtime.handler.streaming.highWaterMark');

let streamed = null; // how the handler streams; null for one that returns its answer

// defineGlobal is what functions that stream find.
function defineGlobal() {
  globalThis.awslambda = {
    ...globalThis.awslambda,
    streamifyResponse(handler, options) {
      handler[STREAMING] = 'response';
      if (options && typeof options.highWaterMark === 'number') handler[HIGH_WATER_MARK] = Math.trunc(options.highWaterMark);
      return handler;
    },
    HttpResponseStream: class HttpResponseStream {
      // from lets the answer begin with a status, headers and cookies: as JSON, ended by eight zero bytes.
      static from(stream, prelude) {
        stream.setContentType('application/vnd.awslambda.http-integration-response');
        const text = JSON.stringify(prelude);
        stream._onBeforeFirstWrite = (write) => {
          write(text);
          write(new Uint8Array(8));
        };
        return stream;
      }
    },
  };
}

// makeStream is the second argument of a handler that streams.
function makeStream(invocation) {
  const { Writable } = require('stream');
  class ResponseStream extends Writable {
    setContentType(type) {
      this.contentType = String(type);
    }

    write(chunk, encoding, callback) {
      this.begin();
      if (typeof chunk !== 'string' && !(chunk instanceof Uint8Array)) chunk = JSON.stringify(chunk);
      return super.write(chunk, encoding, callback);
    }

    end(chunk, encoding, callback) {
      if (typeof chunk === 'function') [chunk, callback] = [undefined, chunk];
      else if (typeof encoding === 'function') [encoding, callback] = [undefined, encoding];
      if (chunk !== undefined && chunk !== null) this.write(chunk, encoding);
      else this.begin();
      return super.end(callback);
    }

    begin() {
      const first = this._onBeforeFirstWrite;
      if (first === undefined) return;
      this._onBeforeFirstWrite = undefined;
      first((bytes) => super.write(bytes));
    }

    _write(chunk, encoding, callback) {
      client.piece(invocation.open(), chunk, callback);
    }

    _final(callback) {
      invocation.close(undefined, callback);
    }
  }
  const stream = new ResponseStream(streamed.highWaterMark === undefined ? {} : { highWaterMark: streamed.highWaterMark });
  stream.contentType = 'application/octet-stream';
  return stream;
}

// Streaming is an invocation whose handler writes its answer. The next event is asked for when the handler is
// through and the answer is whole.
class Streaming {
  constructor(id) {
    this.id = id;
    this.context = null;
    this.stream = makeStream(this);
    this.socket = null; // that the answer goes over, once there is some of it
    this.closed = false; // the answer is whole, or has failed
    this.returned = false;
  }

  open() {
    if (this.socket === null) this.socket = client.open(`invocation/${this.id}/response`, this.stream.contentType);
    return this.socket;
  }

  // close ends the answer, with an error object if it failed.
  close(object, done) {
    if (this.closed) {
      done();
      return;
    }
    this.closed = true;
    client.close(this.open(), object, done);
    this.advance();
  }

  // handled: the handler's promise has come to its end.
  handled(value) {
    if (value !== undefined) console.warn('Streaming handlers ignore return values.');
    this.returned = true;
    this.advance();
  }

  advance() {
    if (!this.returned || !this.closed || current !== this) return;
    current = null;
    client.hold(true);
    client.next();
  }

  finish(failed, error) {
    if (current !== this) return;
    logLine('ERROR', `Invoke Error ${formatted(error)}`);
    this.returned = true;
    if (this.closed) {
      this.advance(); // the answer has left
    } else {
      this.abort(errorObject(error), () => this.stream.destroy());
      this.advance();
    }
  }

  // abort tells what went wrong: beside the answer where it has begun, else in its place.
  abort(object, done) {
    if (this.socket === null && !this.closed) {
      this.closed = true;
      client.post(`invocation/${this.id}/error`, object.errorType, JSON.stringify(object), done);
      return;
    }
    this.close(object, done);
  }

  // The event loop is empty.
  send() {
    if (this.closed) this.handled(undefined);
    else this.finish(true, new Error('Response stream is not finished.'));
  }
}

// ------------------------------------------------------------------ invocation

let handlerFunction;
let client;
let current = null; // the invocation that has no answer yet
let traceId; // what _X_AMZN_TRACE_ID was set to; process.env is slow

// What a context says of the function.
let functionVersion;
let functionName;
let memorySize;
let logGroupName;
let logStreamName;

// adopt takes the function's name in.
function adopt() {
  functionVersion = process.env.AWS_LAMBDA_FUNCTION_VERSION;
  functionName = process.env.AWS_LAMBDA_FUNCTION_NAME;
  memorySize = process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE;
  logGroupName = process.env.AWS_LAMBDA_LOG_GROUP_NAME;
  logStreamName = process.env.AWS_LAMBDA_LOG_STREAM_NAME;
}

class Invocation {
  constructor(id) {
    this.id = id;
    this.context = null;
    this.settled = false; // the handler said what it answers
    this.failed = false;
    this.value = undefined;
  }

  // settle takes the first answer.
  settle(failed, value) {
    if (this.settled || current !== this) return;
    this.settled = true;
    this.failed = failed;
    this.value = value;
  }

  // called is the callback: its answer is sent when the event loop is empty, unless the function
  // said that it must not wait.
  called(failed, value) {
    if (this.settled || current !== this) return;
    this.settle(failed, value);
    if (!this.context.callbackWaitsForEmptyEventLoop) this.send();
  }

  // finish takes an answer, where there is none yet, and sends it at once.
  finish(failed, value) {
    this.settle(failed, value);
    this.send();
  }

  abort(object, done) {
    client.post(`invocation/${this.id}/error`, object.errorType, JSON.stringify(object), done);
  }

  send() {
    if (current !== this) return;
    let body;
    if (!this.failed) {
      try {
        body = JSON.stringify(this.value === undefined ? null : this.value);
        if (body === undefined) body = 'null'; // a function or a symbol
      } catch (err) {
        this.failed = true;
        this.value = new RuntimeError('Runtime.MarshalError', `Unable to stringify response body: ${err.message}`, err);
      }
    }
    let errorType;
    if (this.failed) {
      logLine('ERROR', `Invoke Error ${formatted(this.value)}`);
      const object = errorObject(this.value);
      errorType = object.errorType;
      body = JSON.stringify(object);
    }
    current = null;
    client.hold(true);
    client.post(`invocation/${this.id}/${this.failed ? 'error' : 'response'}`, errorType, body);
  }
}

function toError(err) {
  return isError(err) ? err : new Error(err);
}

function parseHeader(text) {
  if (!text) return undefined;
  return JSON.parse(Buffer.from(text, 'latin1').toString('utf8'));
}

function makeContext(invocation, head) {
  const deadline = head.get(DEADLINE);
  return {
    callbackWaitsForEmptyEventLoop: true,
    functionVersion,
    functionName,
    memoryLimitInMB: memorySize,
    logGroupName,
    logStreamName,
    clientContext: parseHeader(head.get(CLIENT_CONTEXT)),
    identity: parseHeader(head.get(IDENTITY)),
    invokedFunctionArn: head.get(ARN),
    awsRequestId: invocation.id,
    tenantId: head.get(TENANT),
    getRemainingTimeInMillis: () => Math.max(0, (Number(deadline) || 0) - Date.now()),
    done: (err, value) => (err === undefined || err === null ? invocation.finish(false, value) : invocation.finish(true, toError(err))),
    succeed: (value) => invocation.finish(false, value),
    fail: (err) => invocation.finish(true, err === undefined || err === null ? new Error('handled') : toError(err)),
  };
}

function onEvent(head, data, from, to) {
  if (head.status !== 200) {
    writeOut(2, `doze: Runtime API answered ${head.status} to next: ${data.toString('utf8', from, to)}\n`);
    process.exit(1);
  }
  requestId = head.get(REQUEST_ID);
  const trace = head.get(TRACE_ID);
  if (trace !== traceId) {
    traceId = trace;
    if (trace === undefined) delete process.env._X_AMZN_TRACE_ID;
    else process.env._X_AMZN_TRACE_ID = trace;
  }

  const invocation = streamed === null ? new Invocation(requestId) : new Streaming(requestId);
  current = invocation;
  client.hold(false); // an event loop that runs empty answers
  let result;
  try {
    const event = JSON.parse(data.toString('utf8', from, to));
    const context = makeContext(invocation, head);
    invocation.context = context;
    if (streamed !== null) {
      result = handlerFunction(event, invocation.stream, context);
      if (result === null || typeof result !== 'object' || typeof result.then !== 'function') {
        throw new Error('Streaming does not support non-async handlers.');
      }
      result.then((value) => invocation.handled(value), (err) => invocation.finish(true, err));
      return;
    }
    result = handlerFunction(event, context, (err, value) => {
      if (err === undefined || err === null) invocation.called(false, value);
      else invocation.called(true, toError(err));
    });
  } catch (err) {
    invocation.finish(true, err);
    return;
  }
  if (result !== null && result !== undefined && typeof result.then === 'function') {
    // A promise answers at once, also where a callback has settled what the answer is.
    result.then((value) => invocation.finish(false, value), (err) => invocation.finish(true, err));
  }
}

// The event loop is empty: what the handler answered is sent, or null where it answered nothing.
process.on('beforeExit', () => {
  if (current !== null) current.send();
});

// ------------------------------------------------------------------ the end

function fatal(title, error, status) {
  logLine('ERROR', `${title} ${formatted(error)}`);
  const object = errorObject(error);
  const invocation = current;
  current = null;
  const end = () => process.exit(status);
  // Whatever becomes of the report, the process ends.
  setTimeout(end, 1000);
  client.hold(true);
  if (invocation === null) client.post('init/error', object.errorType, JSON.stringify(object), end);
  else invocation.abort(object, end);
}

process.on('uncaughtException', (error) => fatal('Uncaught Exception', error, 129));
process.on('unhandledRejection', (reason) => {
  const error = new RuntimeError('Runtime.UnhandledPromiseRejection', String(reason), isError(reason) ? reason : undefined);
  error.reason = isError(reason) ? errorObject(reason) : reason;
  fatal('Unhandled Promise Rejection', error, 128);
});

// ------------------------------------------------------------------ parked

// exercise serves itself one event over a real connection, so that nothing that every function needs happens
// for the first time in a function's first call.
async function exercise() {
  const body = '{"a":[1,"x",null]}';
  const event = 'HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: 0\r\nLambda-Runtime-Deadline-Ms: 0\r\n' +
    `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
  const ends = [];
  const server = net.createServer();
  const served = new Promise((resolve, reject) => {
    server.on('error', reject);
    server.on('connection', (socket) => {
      ends.push(socket);
      let text = '';
      socket.on('data', (data) => {
        text += data.toString('latin1');
        if (text.split('/next HTTP/1.1').length === 2) socket.write(event); // the first poll
        else resolve(); // the answer, with the next poll
      });
    });
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  client = new Client(`127.0.0.1:${server.address().port}`, onEvent);
  client.next();
  await served;
  ends.push(client.socket, server);
  client.socket = null; // so that the end of the connection means nothing to it
  const ended = ends.map((end) => new Promise((resolve) => end.on('close', resolve)));
  for (const end of ends) end === server ? end.close() : end.destroy();
  await Promise.all(ended);
}

// becomeNobody takes back what exercise has left.
function becomeNobody() {
  requestId = undefined;
  traceId = undefined;
  handlerFunction = undefined;
  current = null;
  client = null;
}

// turn lets the event loop finish what has been begun.
function turn() {
  return new Promise((resolve) => setImmediate(resolve));
}

// handedOver says on the standard input, which is a socket, that this process waits; then it reads from it the
// environment of its function.
function handedOver() {
  fs.writeSync(0, '.');
  const parts = [];
  const part = Buffer.allocUnsafe(65536);
  for (;;) {
    const n = fs.readSync(0, part);
    if (n === 0) break;
    parts.push(Buffer.from(part.subarray(0, n)));
  }
  fs.closeSync(0);
  fs.openSync('/dev/null', 'r'); // the lowest free descriptor is 0
  return Buffer.concat(parts).toString('utf8');
}

// WARM is what of Node.js itself many functions use and a bare start does not load. Nothing that looks at the
// environment or the files of a function when it is loaded, as dns does, may be among it.
const WARM = ['async_hooks', 'crypto', 'events', 'fs/promises', 'http', 'https', 'os', 'stream', 'stream/promises',
  'timers/promises', 'zlib'];

async function park() {
  for (const name of WARM) require(name);
  const crypto = require('crypto');
  crypto.createHash('sha256').update(crypto.randomBytes(8)).digest('hex');
  crypto.randomUUID();
  const { warm } = require('./warm.js');
  handlerFunction = warm;
  util.format('%s %o', 'a', { a: [1] });
  new Date().toISOString();
  await exercise();
  becomeNobody();
  client = new Client(process.env.AWS_LAMBDA_RUNTIME_API, onEvent);
  client.connect();
  await new Promise((resolve) => client.socket.once('connect', resolve));
  await turn();
  const message = handedOver();
  if (!message.endsWith('\0')) process.exit(0); // given up: there is no function
  for (const name of Object.keys(process.env)) delete process.env[name];
  for (const variable of message.slice(0, -1).split('\0')) {
    const equals = variable.indexOf('=');
    process.env[variable.slice(0, equals)] = variable.slice(equals + 1);
  }
  process.chdir('/var/task');
}

async function main() {
  const parked = process.argv[2] === 'parked';
  process.argv.length = 1;
  patchConsole();
  defineGlobal();
  if (parked) await park();
  else client = new Client(process.env.AWS_LAMBDA_RUNTIME_API, onEvent);
  adopt();
  try {
    handlerFunction = await loadHandler(process.env.LAMBDA_TASK_ROOT || '/var/task', process.env._HANDLER || '');
  } catch (error) {
    fatal('Uncaught Exception', error, 1);
    return;
  }
  client.next();
}

main();
