'use strict';

// Doze's runtime client for Node.js functions: it loads the handler, polls the Runtime API at
// $AWS_LAMBDA_RUNTIME_API and calls the handler, one event at a time. It speaks HTTP over a plain
// socket, and the response and the next poll leave in one write. Node.js 18 or later.

const net = require('net');
const fs = require('fs');
const path = require('path');
const util = require('util');
const { pathToFileURL } = require('url');

const API = '/2018-06-01/runtime/';
const ADDRESS = process.env.AWS_LAMBDA_RUNTIME_API;
const TASK_ROOT = process.env.LAMBDA_TASK_ROOT || '/var/task';

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

// Client keeps one connection. Answers come in the order of the requests; each request leaves an
// entry in `waiting`.
class Client {
  constructor(address) {
    const colon = address.lastIndexOf(':');
    this.host = colon < 0 ? address : address.slice(0, colon).replace(/^\[|\]$/g, '');
    this.port = colon < 0 ? 80 : Number(address.slice(colon + 1));
    this.poll = `GET ${API}invocation/next HTTP/1.1\r\nHost: ${address}\r\nUser-Agent: doze-nodejs\r\n\r\n`;
    this.tail = ` HTTP/1.1\r\nHost: ${address}\r\nUser-Agent: doze-nodejs\r\nContent-Type: application/json\r\n`;
    this.socket = null;
    this.buffers = [];
    this.size = 0;
    this.head = null;
    this.waiting = [];
    this.failures = 0;
    this.held = true;
  }

  connect() {
    const socket = net.connect({ host: this.host, port: this.port, noDelay: true });
    this.socket = socket;
    this.buffers = [];
    this.size = 0;
    this.head = null;
    socket.on('data', (data) => { if (socket === this.socket) this.received(data); });
    socket.on('error', (err) => { this.trouble = err; });
    socket.on('close', () => { if (socket === this.socket) this.lost(); });
    if (!this.held) socket.unref();
  }

  // hold decides whether the connection keeps the event loop alive: only while an event is awaited.
  hold(on) {
    this.held = on;
    if (this.socket) on ? this.socket.ref() : this.socket.unref();
  }

  send(text, body, ...entries) {
    if (!this.socket) this.connect();
    this.waiting.push(...entries);
    if (body === undefined) this.socket.write(text, 'latin1');
    else this.socket.write(body);
  }

  next(onEvent) {
    this.send(this.poll, undefined, { poll: true, done: onEvent });
  }

  // post sends a result; with onEvent the request for the next event goes with it.
  post(where, errorType, body, done, onEvent) {
    let head = `POST ${API}${where}${this.tail}`;
    if (errorType !== undefined) {
      head += `Lambda-Runtime-Function-Error-Type: ${String(errorType).replace(/[^!-~]/g, '?')}\r\n`;
    }
    const length = Buffer.byteLength(body, 'utf8');
    const text = `${head}Content-Length: ${length}\r\n\r\n${body}${onEvent ? this.poll : ''}`;
    const entries = [{ poll: false, done }];
    if (onEvent) entries.push({ poll: true, done: onEvent });
    this.send('', Buffer.from(text, 'utf8'), ...entries);
  }

  received(data) {
    this.buffers.push(data);
    this.size += data.length;
    for (;;) {
      if (this.head === null) {
        const all = this.joined();
        const end = all.indexOf('\r\n\r\n');
        if (end < 0) {
          if (this.size > 1 << 20) this.socket.destroy();
          return;
        }
        this.head = parseHead(all.toString('latin1', 0, end));
        this.take(all, end + 4);
      }
      const head = this.head;
      if (head.status < 200) { this.head = null; continue; }
      let body;
      if (head.chunked) {
        const all = this.joined();
        const got = unchunk(all);
        if (got === null) return;
        body = got.body;
        this.take(all, got.used);
      } else if (head.length >= 0) {
        if (this.size < head.length) return;
        const all = this.joined();
        body = all.subarray(0, head.length);
        this.take(all, head.length);
      } else if (head.status === 204) {
        body = Buffer.alloc(0);
      } else {
        return; // ends with the connection
      }
      this.answered(head, body);
      if (this.size === 0) return;
    }
  }

  joined() {
    if (this.buffers.length !== 1) this.buffers = [Buffer.concat(this.buffers, this.size)];
    return this.buffers[0];
  }

  take(all, n) {
    this.size -= n;
    this.buffers = this.size === 0 ? [] : [all.subarray(n)];
  }

  answered(head, body) {
    this.head = null;
    this.failures = 0;
    const entry = this.waiting.shift();
    if (head.close) {
      const socket = this.socket;
      this.socket = null;
      socket.destroy();
      this.pollAgain();
    }
    if (entry && entry.done) entry.done(head, body);
  }

  // lost: the connection ended. A result on its way is taken for delivered or timed out, as the
  // server decides; a poll is sent again.
  lost() {
    this.socket = null;
    if (this.head !== null && !this.head.chunked && this.head.length < 0) {
      this.answered({ ...this.head, close: false }, this.joined());
    }
    while (this.waiting.length > 0 && !this.waiting[0].poll) {
      const entry = this.waiting.shift();
      if (entry.done) entry.done({ status: 0, headers: {} }, Buffer.alloc(0));
    }
    this.pollAgain();
  }

  pollAgain() {
    if (this.waiting.length === 0 || this.socket) return;
    if (++this.failures > 3) {
      writeOut(2, `doze: Runtime API is gone: ${this.trouble ? this.trouble.message : 'connection closed'}\n`);
      process.exit(1);
    }
    const [entry] = this.waiting;
    this.waiting = [];
    this.next(entry.done);
  }
}

function parseHead(text) {
  const lines = text.split('\r\n');
  const headers = Object.create(null);
  for (let n = 1; n < lines.length; n++) {
    const colon = lines[n].indexOf(':');
    if (colon > 0) headers[lines[n].slice(0, colon).toLowerCase()] = lines[n].slice(colon + 1).trim();
  }
  return {
    status: Number(lines[0].split(' ')[1]),
    headers,
    length: headers['content-length'] === undefined ? -1 : Number(headers['content-length']),
    chunked: (headers['transfer-encoding'] || '').toLowerCase() === 'chunked',
    close: (headers.connection || '').toLowerCase() === 'close',
  };
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
  return fn.bind(self);
}

// ------------------------------------------------------------------ invocation

let handlerFunction;
let client;
let current = null; // the invocation that has no answer yet

class Invocation {
  constructor(id) {
    this.id = id;
    this.wait = true; // callbackWaitsForEmptyEventLoop
    this.settled = false; // the handler said what it answers
    this.failed = false;
    this.value = undefined;
  }

  // settle takes the first answer; with wait it is sent when the event loop is empty.
  settle(failed, value) {
    if (this.settled || current !== this) return;
    this.settled = true;
    this.failed = failed;
    this.value = value;
    if (!this.wait) this.send();
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
    client.post(`invocation/${this.id}/${this.failed ? 'error' : 'response'}`, errorType, body, null, onEvent);
  }
}

function parseHeader(text) {
  if (!text) return undefined;
  return JSON.parse(Buffer.from(text, 'latin1').toString('utf8'));
}

function makeContext(invocation, headers) {
  const deadline = Number(headers['lambda-runtime-deadline-ms']) || 0;
  const finish = (failed, value) => {
    invocation.wait = false;
    invocation.settle(failed, value);
    if (invocation.settled) invocation.send();
  };
  const toError = (err) => (isError(err) ? err : new Error(err));
  return {
    get callbackWaitsForEmptyEventLoop() { return invocation.wait; },
    set callbackWaitsForEmptyEventLoop(value) { invocation.wait = Boolean(value); },
    functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION,
    functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
    memoryLimitInMB: process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: process.env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: process.env.AWS_LAMBDA_LOG_STREAM_NAME,
    clientContext: parseHeader(headers['lambda-runtime-client-context']),
    identity: parseHeader(headers['lambda-runtime-cognito-identity']),
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    awsRequestId: invocation.id,
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
    done: (err, value) => (err === undefined || err === null ? finish(false, value) : finish(true, toError(err))),
    succeed: (value) => finish(false, value),
    fail: (err) => finish(true, err === undefined || err === null ? new Error('handled') : toError(err)),
  };
}

function onEvent(head, body) {
  if (head.status !== 200) {
    writeOut(2, `doze: Runtime API answered ${head.status} to next: ${body.toString('utf8')}\n`);
    process.exit(1);
  }
  const headers = head.headers;
  requestId = headers['lambda-runtime-aws-request-id'];
  const trace = headers['lambda-runtime-trace-id'];
  if (trace === undefined) delete process.env._X_AMZN_TRACE_ID;
  else if (process.env._X_AMZN_TRACE_ID !== trace) process.env._X_AMZN_TRACE_ID = trace;

  const invocation = new Invocation(requestId);
  current = invocation;
  client.hold(false); // an event loop that runs empty answers
  let result;
  try {
    const event = JSON.parse(body.toString('utf8'));
    const context = makeContext(invocation, headers);
    result = handlerFunction(event, context, (err, value) => {
      if (err === undefined || err === null) invocation.settle(false, value);
      else invocation.settle(true, isError(err) ? err : new Error(err));
    });
  } catch (err) {
    invocation.wait = false;
    invocation.settle(true, err);
    return;
  }
  if (result !== null && result !== undefined && typeof result.then === 'function') {
    // A promise answers at once, also where a callback has settled what the answer is.
    const now = (failed) => (value) => {
      invocation.wait = false;
      invocation.settle(failed, value);
      invocation.send();
    };
    result.then(now(false), now(true));
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
  const where = current === null ? 'init/error' : `invocation/${current.id}/error`;
  current = null;
  const end = () => process.exit(status);
  // Whatever becomes of the report, the process ends.
  setTimeout(end, 1000);
  client.hold(true);
  client.post(where, object.errorType, JSON.stringify(object), end);
}

process.on('uncaughtException', (error) => fatal('Uncaught Exception', error, 129));
process.on('unhandledRejection', (reason) => {
  const error = new RuntimeError('Runtime.UnhandledPromiseRejection', String(reason), isError(reason) ? reason : undefined);
  error.reason = isError(reason) ? errorObject(reason) : reason;
  fatal('Unhandled Promise Rejection', error, 128);
});

async function main() {
  client = new Client(ADDRESS);
  patchConsole();
  process.argv.length = 1;
  try {
    handlerFunction = await loadHandler(TASK_ROOT, process.env._HANDLER || '');
  } catch (error) {
    fatal('Uncaught Exception', error, 1);
    return;
  }
  client.next(onEvent);
}

main();
