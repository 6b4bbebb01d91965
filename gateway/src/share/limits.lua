-- Admission of a request against several subjects at once, or the true-up of what requests used. All or nothing, by the
-- server's own clock. Levels are units times milliseconds of a minute, so that a millisecond's refill is exactly the rate;
-- they stay below 2^53 and so are whole numbers here.
--
-- KEYS   one hash for each subject: r, t (levels), at (when), n:NODE (requests of a node running, and when it said so).
-- ARGV   mode ("admit" or "settle"), node, milliseconds after which a node's word is stale; then for each subject:
--        requests a minute, tokens a minute, requests at once (0: not limited), requests to take, tokens to take,
--        requests of this node running, this one included.
-- Answer {1, then for each subject: requests left, ms until whole, tokens left, ms until whole}
--        or {0, subject from 1, what (1 requests, 2 tokens, 3 at once), ms to wait}; nothing was taken then.
local MINUTE = 60000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mode, node, stale = ARGV[1], ARGV[2], tonumber(ARGV[3])
local whole = function(number) return string.format('%.0f', number) end

local subjects = {}
local worst
for i, key in ipairs(KEYS) do
  local arg = function(offset) return tonumber(ARGV[3 + (i - 1) * 6 + offset]) end
  local state = redis.call('HMGET', key, 'r', 't', 'at')
  local passed = math.max(0, now - (tonumber(state[3]) or now))
  local subject = { key = key, running = arg(6), levels = {}, rates = { arg(1), arg(2) }, costs = { arg(4), arg(5) } }
  for which = 1, 2 do
    local rate = subject.rates[which]
    if rate > 0 then
      local full = rate * MINUTE
      local level = math.min(full, (tonumber(state[which]) or full) + rate * passed)
      subject.levels[which] = level
      local missing = math.min(subject.costs[which] * MINUTE, full) - level
      local wait = math.ceil(missing / rate)
      if missing > 0 and (not worst or wait >= worst[4]) then worst = { 0, i, which, wait } end
    end
  end
  if arg(3) > 0 and mode == 'admit' then
    local running = subject.running
    local fields = redis.call('HGETALL', key)
    for at = 1, #fields, 2 do
      if string.sub(fields[at], 1, 2) == 'n:' and fields[at] ~= 'n:' .. node then
        local count, said = string.match(fields[at + 1], '^(%d+):(%d+)$')
        if count and now - tonumber(said) < stale then running = running + tonumber(count) end
      end
    end
    if running > arg(3) and not worst then worst = { 0, i, 3, 0 } end
  end
  subjects[i] = subject
end
if mode == 'admit' and worst then return worst end

local answer = { 1 }
for _, subject in ipairs(subjects) do
  local write, keep = { 'at', whole(now) }, stale
  for which = 1, 2 do
    local rate, level = subject.rates[which], subject.levels[which]
    local left, reset = 0, 0
    if level then
      level = math.min(rate * MINUTE, level - subject.costs[which] * MINUTE)
      left, reset = math.max(0, math.floor(level / MINUTE)), math.ceil((rate * MINUTE - level) / rate)
      write[#write + 1] = which == 1 and 'r' or 't'
      write[#write + 1] = whole(level)
      keep = math.max(keep, reset)
    end
    answer[#answer + 1] = left
    answer[#answer + 1] = reset
  end
  if subject.running > 0 then
    write[#write + 1] = 'n:' .. node
    write[#write + 1] = whole(subject.running) .. ':' .. whole(now)
  else
    redis.call('HDEL', subject.key, 'n:' .. node)
  end
  redis.call('HSET', subject.key, unpack(write))
  -- A bucket that is full again, with nobody on it, is the same as none.
  redis.call('PEXPIRE', subject.key, whole(keep + MINUTE))
end
return answer
