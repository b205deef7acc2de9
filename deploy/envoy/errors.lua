-- Gives Envoy's own answers the form of all others: google.rpc.Status as JSON, with a reason a client can switch on.
-- Answers of the services pass untouched; Envoy's own carry a mark that is taken off here.

local CODES = {
  ["400"] = {3, "INVALID_REQUEST"}, ["401"] = {16, "TOKEN_INVALID"}, ["403"] = {7, "FORBIDDEN"},
  ["404"] = {5, "NO_SUCH_METHOD"}, ["405"] = {12, "NO_SUCH_METHOD"}, ["408"] = {4, "REQUEST_TIMEOUT"},
  ["413"] = {8, "REQUEST_TOO_LARGE"}, ["415"] = {3, "CONTENT_TYPE_UNSUPPORTED"}, ["426"] = {9, "UPGRADE_REQUIRED"},
  ["429"] = {8, "TOO_MANY_REQUESTS"}, ["431"] = {8, "HEADERS_TOO_LARGE"}, ["500"] = {13, "INTERNAL"},
  ["502"] = {14, "SERVICE_UNAVAILABLE"}, ["503"] = {14, "SERVICE_UNAVAILABLE"}, ["504"] = {4, "REQUEST_TIMEOUT"},
}

local function quoted(text)
  text = text:gsub('[%c"\\]', function(c)
    if c == '"' or c == "\\" then return "\\" .. c end
    return string.format("\\u%04x", c:byte())
  end)
  return '"' .. text .. '"'
end

local function any(kind, fields)
  return '{"@type":"type.googleapis.com/google.rpc.' .. kind .. '",' .. fields .. "}"
end

function envoy_on_request(handle)
  local id = handle:headers():get("x-request-id")
  if id ~= nil then handle:streamInfo():dynamicMetadata():set("aiagent", "request_id", id) end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if headers:get("x-aiagent-local") == nil then return end
  headers:remove("x-aiagent-local")
  local kind = headers:get("content-type") or ""
  if kind:find("application/grpc", 1, true) == 1 then return end
  local status = headers:get(":status")
  local known = CODES[status]
  if known == nil then return end
  local body = handle:body(true)
  -- Waiting for the body ends the scope of what was taken before.
  headers = handle:headers()
  local text = body:length() > 0 and body:getBytes(0, body:length()) or ""
  local code, reason, details = known[1], known[2], {}
  if status == "401" then
    if text:find("missing", 1, true) then
      reason, text = "TOKEN_MISSING", "the call needs an access token"
    elseif text:find("expired", 1, true) then
      reason, text = "TOKEN_EXPIRED", "the access token has expired"
    else
      text = "the access token is not valid"
    end
  elseif status == "400" then
    -- The transcoder writes "INVALID_ARGUMENT: (field): what is wrong" or "...: what is wrong".
    text = text:gsub("^INVALID_ARGUMENT:%s*", "")
    local field, what = text:match("^%(([%w_%.%[%]]+)%):%s*(.*)$")
    if field == nil then
      field, what = text:match("^([%l][%w_%.%[%]]*):%s*(.*)$")
    end
    if field == nil then
      what = text
      field = text:match("Could not find field \"([%w_%.]+)\"") or ""
    end
    what = what:gsub(" for type type%.googleapis%.com/[%w_%.]+", "")
    details[#details + 1] = any("BadRequest",
      '"field_violations":[{"field":' .. quoted(field) .. ',"description":' .. quoted(what) ..
      ',"reason":"INVALID_REQUEST"}]')
    if field ~= "" then text = field .. ": " .. what end
  elseif status == "404" then
    text = "there is no such method; see /docs"
  elseif status == "413" then
    text = "the request is larger than 16 MiB"
  elseif status == "502" or status == "503" then
    text = "the service cannot be reached; try again"
    details[#details + 1] = any("RetryInfo", '"retry_delay":"1s"')
  end
  if text == "" then text = reason end
  local request_id = (handle:streamInfo():dynamicMetadata():get("aiagent") or {})["request_id"] or ""
  table.insert(details, 1, any("ErrorInfo",
    '"reason":' .. quoted(reason) .. ',"domain":"aiagent","metadata":{"request_id":' .. quoted(request_id) .. "}"))
  local json = '{"code":' .. code .. ',"message":' .. quoted(text) .. ',"details":[' ..
    table.concat(details, ",") .. "]}"
  headers:replace("content-type", "application/json")
  headers:replace("content-length", tostring(#json))
  body:setBytes(json)
end
