// Chat completions through OpenAI's client for Node. BASE_URL is a running server of the demo model's; NODE_PATH names the
// folder that holds the client. The Python suite beside this one asks more; here it is about what Node's client does itself.
'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const OpenAI = require('openai');

const baseURL = `${process.env.BASE_URL}/v1`;
const client = new OpenAI({ baseURL, apiKey: 'any', maxRetries: 0, timeout: 60_000 });
const model = 'jewel-demo';
const who = [{ role: 'user', content: 'Who are you?' }];
const whoAnswer = "I am Jewel's demo model, a tiny Gemma 4 that was trained on drawn pictures.";
const picture = (name) =>
  `data:image/png;base64,${fs.readFileSync(path.join(__dirname, '../../../models/examples', name)).toString('base64')}`;
const ask = (more = {}, options = {}) =>
  client.chat.completions.create({ model, messages: who, temperature: 0, max_tokens: 120, ...more }, options);
const weather = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'Get the weather in a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false },
  },
};
const paris = [{ role: 'user', content: 'What is the weather in Paris?' }];
// Seconds of text: an answer of milliseconds may come as one piece.
const endless = { max_tokens: 8000, min_tokens: 8000 };

async function underWay() {
  const page = await (await fetch(`${process.env.BASE_URL}/metrics`)).text();
  const values = [...page.matchAll(/^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([0-9.]+)$/gm)].map((m) => Number(m[1]));
  assert.ok(values.length >= 2, page);
  return values.reduce((a, b) => a + b, 0);
}
async function becomesIdleWithin(ms) {
  const end = Date.now() + ms;
  while ((await underWay()) > 0) assert.ok(Date.now() < end, `requests are still under way after ${ms} ms`);
}

test('chat', async () => {
  const answer = await ask();
  assert.equal(answer.choices[0].message.content, whoAnswer);
  assert.equal(answer.choices[0].finish_reason, 'stop');
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.ok(answer._request_id);
});

test('stream', async () => {
  let content = '';
  let usage;
  for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
    content += chunk.choices[0]?.delta?.content ?? '';
    usage = chunk.usage ?? usage;
  }
  assert.equal(content, whoAnswer);
  assert.ok(usage.completion_tokens > 10);
});

test('the streaming helper', async () => {
  const stream = client.chat.completions.stream({ model, messages: who, temperature: 0 });
  let content = '';
  stream.on('content', (delta) => (content += delta));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, whoAnswer);
  assert.equal(content, whoAnswer);
});

test('pictures and thinking', async () => {
  const messages = [{ role: 'user', content: [{ type: 'image_url', image_url: { url: picture('shapes.png') } },
    { type: 'text', text: 'How many circles are there?' }] }];
  const answer = await ask({ messages, reasoning_effort: 'low' });
  assert.equal(answer.choices[0].message.content, 'There are 3 circles.');
  assert.match(answer.choices[0].message.reasoning_content, /red circle/);
  assert.ok(answer.usage.completion_tokens_details.reasoning_tokens > 0);
});

test('a tool call, whole and streamed', async () => {
  const whole = (await ask({ messages: paris, tools: [weather] })).choices[0];
  assert.equal(whole.finish_reason, 'tool_calls');
  const [call] = whole.message.tool_calls;
  assert.deepEqual([call.function.name, JSON.parse(call.function.arguments)], ['get_weather', { city: 'Paris' }]);
  const stream = client.chat.completions.stream({ model, messages: paris, tools: [weather], temperature: 0 });
  const streamed = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0];
  assert.deepEqual([streamed.function.name, streamed.function.arguments], [call.function.name, call.function.arguments]);
});

test('parallel tool calls', async () => {
  // Kept from ending (<eos>, <|tool_response>, <turn|>), the demo model calls again.
  const more = { messages: paris, tools: [weather], tool_choice: 'required', logit_bias: { 1: -100, 9: -100, 16: -100 }, max_tokens: 100 };
  const calls = (await ask(more)).choices[0].message.tool_calls;
  assert.ok(calls.filter((call) => call.function.arguments === '{"city":"Paris"}').length >= 2);
  assert.equal(new Set(calls.map((call) => call.id)).size, calls.length);
});

test('tools run by the client', async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model, messages: paris, temperature: 0,
    tools: [{ ...weather, function: { ...weather.function, parse: JSON.parse, function: ({ city }) => (asked.push(city), 'sunny, 21 degrees') } }],
  });
  assert.equal(await runner.finalContent(), 'The weather in Paris is sunny, 21 degrees.');
  assert.deepEqual(asked, ['Paris']);
});

test('JSON schema', async () => {
  const schema = { type: 'object', properties: { n: { type: 'integer', minimum: 0, maximum: 9 }, yes: { type: 'boolean' } },
    required: ['n', 'yes'], additionalProperties: false };
  const answer = await client.chat.completions.parse({ model, messages: who, temperature: 0, max_tokens: 1500,
    response_format: { type: 'json_schema', json_schema: { name: 'x', strict: true, schema } } });
  const { parsed } = answer.choices[0].message;
  assert.ok(Number.isInteger(parsed.n) && parsed.n >= 0 && parsed.n <= 9);
  assert.equal(typeof parsed.yes, 'boolean');
});

test('logprobs', async () => {
  const answer = await ask({ logprobs: true, top_logprobs: 2 });
  const { content } = answer.choices[0].logprobs;
  assert.equal(content.length, answer.usage.completion_tokens);
  assert.ok(content.every((token) => token.logprob <= 0 && token.top_logprobs.length === 2));
});

test('completions and models', async () => {
  const prompt = '<|turn>user\nWho are you?<turn|>\n<|turn>model\n';
  const answer = await client.completions.create({ model, prompt, temperature: 0, max_tokens: 60 });
  assert.equal(answer.choices[0].text, whoAnswer);
  const names = [];
  for await (const found of client.models.list()) names.push(found.id);
  assert.deepEqual(names, [model]);
});

test('errors', async () => {
  await assert.rejects(ask({ temperature: 'hot' }), (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature');
  await assert.rejects(ask({ temperature: -1, stream: true }), (error) => error instanceof OpenAI.BadRequestError && error.status === 400);
  await assert.rejects(ask({ model: 'gpt-5' }), OpenAI.NotFoundError);
  const keyed = new OpenAI({ baseURL: `${process.env.KEYED_URL}/v1`, apiKey: 'wrong', maxRetries: 0 });
  await assert.rejects(keyed.models.list(), OpenAI.AuthenticationError);
  assert.equal((await keyed.withOptions({ apiKey: 'right' }).models.list()).data.length, 1);
});

test('cancel', async () => {
  const stream = await ask({ ...endless, stream: true });
  let pieces = 0;
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    if (chunk.choices[0].delta.content) ++pieces;
    if (pieces < 5) continue;
    assert.ok((await underWay()) > 0, 'it comes while it is being written');
    break; // leaving the loop closes the connection
  }
  assert.equal(pieces, 5);
  await becomesIdleWithin(1000);
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 200);
  await assert.rejects(ask(endless, { signal: controller.signal }), OpenAI.APIUserAbortError);
  await becomesIdleWithin(1000);
});

test('timeout', async () => {
  await assert.rejects(ask(endless, { timeout: 300 }), OpenAI.APIConnectionTimeoutError);
  await becomesIdleWithin(1000);
});
