-- Gives Envoy's own answers the form of all others: google.rpc.Status with a reason a client can switch on, as JSON or,
-- for gRPC and gRPC-Web, as status details. Answers of the services pass untouched; Envoy's own carry a mark with their
-- status and cause, which is taken off here. On the way in, request ids that are no ids are replaced, and `bearer` is written `Bearer`.

local DOMAIN = "aiagent"
local CODES = {
  ["400"] = {3, "INVALID_REQUEST"}, ["401"] = {16, "TOKEN_INVALID"}, ["403"] = {7, "FORBIDDEN"},
  ["404"] = {5, "NO_SUCH_METHOD"}, ["405"] = {12, "NO_SUCH_METHOD"}, ["408"] = {4, "REQUEST_TIMEOUT"},
  ["413"] = {8, "REQUEST_TOO_LARGE"}, ["415"] = {3, "CONTENT_TYPE_UNSUPPORTED"}, ["426"] = {9, "UPGRADE_REQUIRED"},
  ["429"] = {8, "TOO_MANY_REQUESTS"}, ["431"] = {8, "HEADERS_TOO_LARGE"}, ["500"] = {13, "INTERNAL"},
  ["502"] = {14, "SERVICE_UNAVAILABLE"}, ["503"] = {14, "SERVICE_UNAVAILABLE"}, ["504"] = {4, "REQUEST_TIMEOUT"},
}
local UNIMPLEMENTED = 12

math.randomseed(os.time() + tonumber(tostring({}):match("0x(%x+)") or "0", 16) % 2147483648)

local function fresh_id()
  return (("xxxxxxxx-xxxx-4xxx-axxx-xxxxxxxxxxxx"):gsub("x", function()
    return string.format("%x", math.random(0, 15))
  end))
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local id = headers:get("x-request-id")
  if id == nil or #id == 0 or #id > 128 or id:find("[^%w._-]") then
    id = fresh_id()
    headers:replace("x-request-id", id)
  end
  handle:streamInfo():dynamicMetadata():set("aiagent", "request_id", id)
  -- The name of the scheme is in any case (RFC 9110, 11.1); the check of the token knows one.
  local token = (headers:get("authorization") or ""):match("^[Bb][Ee][Aa][Rr][Ee][Rr] +(.*)$")
  if token ~= nil then headers:replace("authorization", "Bearer " .. token) end
end

local function request_id(handle)
  local known = handle:streamInfo():dynamicMetadata():get("aiagent")
  return known and known["request_id"] or ""
end

-- JSON and protobuf are UTF-8, and what is told of a broken request holds a piece of it at times.
local CHARACTERS = {
  "^[%z\1-\127]+", "^[\194-\223][\128-\191]", "^\224[\160-\191][\128-\191]", "^[\225-\236\238\239][\128-\191][\128-\191]",
  "^\237[\128-\159][\128-\191]", "^\240[\144-\191][\128-\191][\128-\191]", "^[\241-\243][\128-\191][\128-\191][\128-\191]",
  "^\244[\128-\143][\128-\191][\128-\191]",
}

local function readable(text)
  local parts, at = {}, 1
  while at <= #text do
    local found
    for _, pattern in ipairs(CHARACTERS) do
      found = found or text:match(pattern, at)
    end
    parts[#parts + 1] = found or "?"
    at = at + #(found or "?")
  end
  return table.concat(parts)
end

-- JSON

local function quoted(text)
  text = text:gsub('[%c"\\]', function(c)
    if c == '"' or c == "\\" then return "\\" .. c end
    return string.format("\\u%04x", c:byte())
  end)
  return '"' .. text .. '"'
end

local function json_detail(kind, fields)
  return '{"@type":"type.googleapis.com/google.rpc.' .. kind .. '",' .. fields .. "}"
end

local function as_json(failure)
  local details = {json_detail("ErrorInfo", '"reason":' .. quoted(failure.reason) .. ',"domain":' .. quoted(DOMAIN) ..
    ',"metadata":{"request_id":' .. quoted(failure.request_id) .. "}")}
  if failure.field ~= nil then
    details[#details + 1] = json_detail("BadRequest", '"field_violations":[{"field":' .. quoted(failure.field) ..
      ',"description":' .. quoted(failure.description) .. ',"reason":' .. quoted(failure.reason) .. "}]")
  end
  if failure.again then details[#details + 1] = json_detail("RetryInfo", '"retry_delay":"1s"') end
  return '{"code":' .. failure.code .. ',"message":' .. quoted(failure.message) .. ',"details":[' ..
    table.concat(details, ",") .. "]}"
end

-- Protobuf

local function varint(number)
  local bytes = ""
  while number >= 128 do
    bytes = bytes .. string.char(number % 128 + 128)
    number = math.floor(number / 128)
  end
  return bytes .. string.char(number)
end

local function embedded(field, bytes)
  return string.char(field * 8 + 2) .. varint(#bytes) .. bytes
end

local function number(field, value)
  return string.char(field * 8) .. varint(value)
end

local function any(kind, bytes)
  return embedded(3, embedded(1, "type.googleapis.com/google.rpc." .. kind) .. embedded(2, bytes))
end

local function as_protobuf(failure)
  local id = embedded(1, "request_id") .. embedded(2, failure.request_id)
  local bytes = number(1, failure.code) .. embedded(2, failure.message) ..
    any("ErrorInfo", embedded(1, failure.reason) .. embedded(2, DOMAIN) .. embedded(3, id))
  if failure.again then bytes = bytes .. any("RetryInfo", embedded(1, number(1, 1))) end
  return bytes
end

-- What has gone wrong

local function explain(failure, status, cause, text)
  text = readable(text)
  if status == "401" then
    if cause:find("Jwks_remote", 1, true) or cause:find("Jwks_doesn", 1, true) == nil and cause:find("Jwks_", 1, true) then
      -- The keys could not be had: the token may well be good, and the client must not throw it away.
      failure.status, failure.code, failure.reason, failure.again = "503", 14, "SERVICE_UNAVAILABLE", true
      failure.message = "tokens cannot be checked at the moment; try again"
    elseif cause:find("missing", 1, true) then
      failure.reason, failure.message = "TOKEN_MISSING", "the call needs an access token"
    elseif cause:find("expired", 1, true) then
      failure.reason, failure.message = "TOKEN_EXPIRED", "the access token has expired"
    else
      failure.message = "the access token is not valid"
    end
  elseif status == "400" then
    -- The transcoder writes "INVALID_ARGUMENT: field: what is wrong", the field in parentheses at times or missing.
    text = text:gsub("^INVALID_ARGUMENT:%s*", ""):gsub("type%.googleapis%.com/", "")
    local twice = text:match("of the field ([%w_%.]+) is conflicting")
    if twice ~= nil then text = "(" .. twice .. "): stands in the path, and the body says otherwise" end
    local field, what = text:match("^%(([%w_%.%[%]]+)%):%s*(.*)$")
    if field == nil then field, what = text:match("^([%l_][%w_%.%[%]]*): (invalid .*)$") end
    if field == nil then
      what = text ~= "" and text or "it cannot be read"
      field = text:match('Could not find field "([%w_%.]+)"') or ""
    end
    failure.field, failure.description = field, what
    failure.message = field ~= "" and field .. ": " .. what or what
  elseif status == "404" then
    failure.message = "there is no such method; see /docs"
  elseif status == "413" then
    failure.message = "the request is larger than 16 MiB"
  elseif status == "502" or status == "503" then
    failure.message, failure.again = "the service cannot be reached; try again", true
  elseif text ~= "" then
    failure.message = text
  end
end

local function answer_json(handle, headers, failure)
  local json = as_json(failure)
  headers:replace("content-type", "application/json")
  headers:replace("content-length", tostring(#json))
  handle:body(true):setBytes(json)
end

local function answer_grpc(handle, headers, failure)
  headers:replace("grpc-status", tostring(failure.code))
  headers:replace("grpc-message", failure.message)
  headers:replace("grpc-status-details-bin", (handle:base64Escape(as_protobuf(failure)):gsub("=+$", "")))
end

local function answer_health(handle, headers, status)
  local json = status == "200" and '{"status":"ok"}' or '{"status":"unavailable"}'
  headers:remove("x-envoy-upstream-healthchecked-cluster")
  headers:replace("content-type", "application/json")
  headers:replace("cache-control", "no-store")
  headers:replace("content-length", tostring(#json))
  handle:body(true):setBytes(json)
end

local function failure_of(handle, status)
  local known = CODES[status]
  return known and
    {status = status, code = known[1], reason = known[2], message = known[2], request_id = request_id(handle)}
end

-- gRPC itself refuses a message that is too large, before a service could say so in our form.
local function refused_by_grpc(handle, headers)
  local failure = failure_of(handle, "413")
  explain(failure, "413", "", "")
  if headers:get("grpc-status") == "8" then
    if (headers:get("grpc-message") or ""):find("larger than max", 1, true) then answer_grpc(handle, headers, failure) end
  elseif headers:get(":status") == "429" then
    local body = handle:body(true)
    if body:length() > 0 and body:length() < 1000 and body:getBytes(0, body:length()):find("larger than max", 1, true) then
      headers = handle:headers()
      headers:replace(":status", "413")
      answer_json(handle, headers, failure)
    end
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local mark = headers:get("x-aiagent-local")
  if mark == nil then
    if headers:get("grpc-status") == "8" or headers:get(":status") == "429" then refused_by_grpc(handle, headers) end
    return
  end
  headers:remove("x-aiagent-local")
  local status, cause = mark:match("^(%d+) ?(.*)$")
  if cause:find("health_check", 1, true) == 1 then
    answer_health(handle, headers, status)
    return
  end
  local failure = failure_of(handle, status)
  if failure == nil then return end
  if (headers:get("content-type") or ""):find("application/grpc", 1, true) == 1 then
    explain(failure, status, cause, headers:get("grpc-message") or "")
    if status == "404" then failure.code = UNIMPLEMENTED end
    answer_grpc(handle, headers, failure)
    return
  end
  local body = handle:body(true)
  -- Waiting for the body ends the scope of what was taken before.
  headers = handle:headers()
  explain(failure, status, cause, body:length() > 0 and body:getBytes(0, body:length()) or "")
  if failure.status ~= status then
    headers:replace(":status", failure.status)
    headers:remove("www-authenticate")
  end
  answer_json(handle, headers, failure)
end
