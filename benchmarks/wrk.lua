-- Sends the bodies of a file in turn, one body a line, and prints one JSON line of what came back.
--   wrk ... -s wrk.lua URL -- BODIES FIRST CONNECTIONS
-- A rate is taken from completions alone, from the last of the first wave to the last of all, so
-- that what is in flight at the end counts neither for nor against a server.
local ffi = require("ffi")
ffi.cdef([[
  typedef struct { long seconds; long nanoseconds; } moment;
  int clock_gettime(int clock, moment *now);
]])
local MONOTONIC = 1
local moment = ffi.new("moment")
local threads = {}
local bodies, at, connections = {}, 0, 0
-- Globals, as the main thread reads them by name.
completed, refused, wave_end, last_end = 0, 0, 0, 0

local function now()
  ffi.C.clock_gettime(MONOTONIC, moment)
  return tonumber(moment.seconds) + tonumber(moment.nanoseconds) / 1e9
end

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  wrk.headers["Content-Type"] = "application/json"
  for line in io.lines(args[1]) do
    table.insert(bodies, wrk.format("POST", wrk.path, wrk.headers, line))
  end
  at = tonumber(args[2])
  connections = tonumber(args[3])
end

function request()
  at = at % #bodies + 1
  return bodies[at]
end

function response(status)
  completed = completed + 1
  if status < 200 or status > 299 then refused = refused + 1 end
  last_end = now()
  if completed == connections then wave_end = last_end end
end

function done(summary, latency)
  local thread, errors = threads[1], summary.errors
  io.write(string.format(
    '\n{"completed": %d, "refused": %d, "socket_errors": %d, "seconds": %.6f, '
      .. '"span_s": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "mean_ms": %.3f}\n',
    thread:get("completed"), thread:get("refused"),
    errors.connect + errors.read + errors.write + errors.timeout, summary.duration / 1e6,
    thread:get("last_end") - thread:get("wave_end"),
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.mean / 1e3))
end
