// The function that doze bench calls: echo, or sleep first when the event says so.
const instance = require('crypto').randomBytes(8).toString('hex');

exports.handler = async (event) => {
  if (event.sleepMs === undefined) return event;
  const startedMicros = Date.now() * 1000;
  await new Promise((done) => setTimeout(done, event.sleepMs));
  return { instance, startedMicros };
};
