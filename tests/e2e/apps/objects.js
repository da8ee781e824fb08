// Large structures in node, worked on twice. Prints digests; argument: size in units of about a MiB.
'use strict';
const crypto = require('crypto');
const size = parseInt(process.argv[2], 10);

let state = 12345;
function random(bound) {  // xorshift32: the same in every run
  state ^= state << 13; state ^= state >>> 17; state ^= state << 5;
  return (state >>> 0) % bound;
}
function digest(label, items) {
  const hash = crypto.createHash('sha256');
  for (const item of items) hash.update(item);
  console.log(label, hash.digest('hex').slice(0, 32));
}

const words = [];
for (let i = 0; i < 4000; i++) {
  let word = '';
  for (let n = 3 + random(6); n > 0; n--) word += String.fromCharCode(97 + random(22));
  words.push(word);
}
const records = [];
const byName = new Map();
for (let i = 0; i < size * 1400; i++) {
  const record = {id: i, name: words[random(4000)] + ' ' + words[random(4000)] + ' ' + i, scores: [], near: random(i + 1), tags: new Set(),
                  nested: {town: words[random(4000)], at: [random(90) + 0.5, random(180) + 0.25]}};
  for (let n = 0; n < 8; n++) record.scores.push(random(100000) / 7);
  for (let n = 0; n < 3; n++) record.tags.add(words[random(4000)]);
  records.push(record);
  byName.set(record.name, record);
}
const buffers = [];
for (let i = 0; i < size * 8; i++) {
  const buffer = Buffer.allocUnsafe(16384);
  for (let at = 0; at < buffer.length; at += 4) buffer.writeUInt32LE(i % 3 ? random(1 << 20) : random(0xffffffff), at);
  buffers.push(buffer);
}
function* strings() { for (const r of records) yield r.name + r.scores.join() + r.nested.town + [...r.tags].join(); }

for (let turn = 1; turn <= 2; turn++) {
  let place = records.length - 1, sum = 0;
  for (let step = 0; step < records.length / 3; step++) {
    const record = records[place];
    sum = (sum + record.id * (step % 13) + record.scores[step % 8]) % 1e12;
    place = (record.near * 31 + step * 7 + turn) % records.length;
  }
  console.log('walk', turn, sum.toFixed(3), place);
  records.sort((a, b) => a.nested.town < b.nested.town ? -1 : a.nested.town > b.nested.town ? 1 : a.id - b.id);
  for (const record of records) {
    record.scores = record.scores.map(x => Math.round(x * 3 + turn));
    record.tags.add('turn' + turn);
  }
  digest('records ' + turn, strings());
  for (const buffer of buffers) buffer.swap32();
  digest('buffers ' + turn, buffers);
  digest('json ' + turn, [JSON.stringify(records.slice(0, records.length / 4), (k, v) => v instanceof Set ? [...v] : v)]);
}
let found = 0;
for (let i = 0; i < records.length; i++) found += byName.get(records[random(records.length)].name).id % 97;
console.log('found', found);
