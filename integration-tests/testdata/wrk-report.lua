-- Prints what wrk measured as one line of JSON. wrk counts time in microseconds.
function done(summary, latency, requests)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    print(string.format(
        '{"requests":%d,"requests_per_second":%.1f,"failed":%d,"p50_us":%.1f,"p99_us":%.1f}',
        summary.requests,
        summary.requests * 1e6 / summary.duration,
        failed,
        latency:percentile(50),
        latency:percentile(99)
    ))
end
