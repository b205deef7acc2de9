-- Refuses a query parameter whose name the path has bound already: the transcoder would let it win, so that a call for
-- one session would reach another. `TEMPLATES` stands before this text: a pattern of the path, and the names it binds.

local function decoded(text)
  return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

-- Both spellings of a field: `session_id` and `sessionId`.
local function plain(name)
  return (name:gsub("_", ""):lower())
end

local function bound(path)
  for _, template in ipairs(TEMPLATES) do
    if path:find(template[1]) then return template[2] end
  end
  return {}
end

function envoy_on_request(handle)
  local path, query = handle:headers():get(":path"):match("^([^?#]*)%?([^#]*)")
  if query == nil then return end
  for parameter in query:gmatch("[^&]+") do
    local sent = plain(decoded(parameter:match("^[^=]*")))
    for _, name in ipairs(bound(path)) do
      if sent == plain(name) then
        local why = "INVALID_ARGUMENT: (" .. name .. "): stands in the path, and nowhere else"
        handle:respond({[":status"] = "400"}, why)
        return
      end
    end
  end
end
