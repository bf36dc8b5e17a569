# Reads segments from docs/wire-format.md alone, with Ruby's cbor gem and OpenSSL: no code of ours, and not Python. Names
# of types, fields and columns are taken from docs/record-types.md.
#
#   ruby read.rb IDENTITY-KEY-HEX EPOCH-KEY-HEX DICTIONARIES FILE...
#
# One line of JSON for each: {"verified", "stream", "seq", "dictionary", "records"}, records as in decoded.json: references
# and differences undone, bytes in hex, "baseline:N" for an entry of the baseline or its digest.
# For each statement (*.ege) {"verified": ..., "number", "key"}. An identity key of 33 bytes is of P-256.
require "cbor"
require "digest"
require "json"
require "openssl"
require "zlib"

INFLATED_MAX = 262_144
SPKI = ["302a300506032b6570032100"].pack("H*") # RFC 8410: an Ed25519 key follows

def refuse(why)
  warn why
  exit 1
end

P256_SPKI = ["3039301306072a8648ce3d020106082a8648ce3d030107032200"].pack("H*") # RFC 5480: a compressed point follows
P256_HALF = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551 / 2

# Ed25519, or ES256 with the smaller s.
def verified?(raw, signature, signed)
  return OpenSSL::PKey.read(SPKI + raw).verify(nil, signature, signed) if raw.bytesize == 32
  r, s = signature.unpack1("H64").hex, signature[32..].unpack1("H64").hex
  pair = OpenSSL::ASN1::Sequence.new([r, s].map { |number| OpenSSL::ASN1::Integer.new(OpenSSL::BN.new(number.to_s)) })
  s <= P256_HALF && OpenSSL::PKey.read(P256_SPKI + raw).verify("SHA256", pair.to_der, signed)
end

def inflate(body, dictionary)
  inflater = Zlib::Inflate.new(-Zlib::MAX_WBITS)
  inflater.set_dictionary(dictionary) if dictionary
  plain = inflater.inflate(body)
  refuse "more than #{INFLATED_MAX} bytes" if plain.bytesize > INFLATED_MAX
  plain
end

SEVERITIES = [nil, "informational", "low", "medium", "high", "critical"]
SECTIONS = File.read(File.join(__dir__, "../../docs/record-types.md")).split("\n## ").drop(1)
FIELDS = SECTIONS.to_h do |section|
  fields = section.scan(/^\| `(\w+)` \| ([^:|]*)(?:: (.*))? \|$/).map { |name, kind, names| [name, kind.strip, names] }
  [section.lines.first.chomp, fields]
end
TYPES = FIELDS.keys.grep(/^\d/).to_h { |title| [title.to_i, [title.split.last, FIELDS[title]]] }
COLUMNS = SECTIONS.last.lines.last.split(", ").map { |item| item.split.last }
ACTOR = FIELDS.fetch("Actor")[0...-1]
MOVING = %w[pid ppid start]

# The rows of one segment. Numbers, digests and a row's own path depend on what was read before.
class Rows
  def initialize(strings, digests, packed)
    @strings = strings.map { |item| text(item) }
    @digests, @packed = digests.unpack("a32" * (digests.bytesize / 32)), packed
    @before, @used = Hash.new(0), 0
  end

  def record(row, wall)
    _, head, *values = row
    @wall, @own = wall || 0, nil
    name, fields = TYPES.fetch(head >> 4, [head >> 4, []])
    shown = { "type" => name }
    shown["severity"] = SEVERITIES[head & 7] if head & 7 > 0
    shown["rule_matched"] = true if head & 8 > 0
    fields.zip(values) { |field, value| shown[field[0]] = one(field, value) unless value.nil? }
    shown["unknown_fields"] = values.drop(fields.size).map { |value| plain(value) } if values.size > fields.size
    shown
  end

  def done?
    @used == @digests.size
  end

  private

  def one((name, kind, names), value)
    case kind
    when "text" then reference(value, true)
    when "list of texts" then value.map { |item| reference(item, false) }
    when "number from 0 on" then @before[name] = moved(name, value)
    when "counter" then @before[name] += value
    when "one of" then (names.split(", ")[value] || value.to_s).sub(/^\d+ /, "")
    when "digest, bytes" then digest(value)
    when "columns" then columns(value)
    when "actor" then actor(value)
    else plain(value)
    end
  end

  def reference(value, field)
    return text(value) if value.is_a?(String)
    return @strings.fetch(value) unless value.negative?
    @own ||= -1 - value if field
    "baseline:#{-1 - value}"
  end

  def moved(name, value)
    return value unless value.negative?
    refuse "a negative number in plain rows" unless @packed
    from = { "start" => @wall, "ppid" => @before["pid"] }.fetch(name) { @before[name] }
    z = -1 - value
    z.even? ? from + z / 2 : from - (z + 1) / 2
  end

  def digest(value)
    return plain(value) unless value.is_a?(Integer)
    return "baseline:#{@own}" if value == -1
    refuse "digest #{value}, and #{@used} were used" unless value.between?(0, @used)
    @used += 1 if value.zero?
    @digests.fetch(@used - (value.zero? ? 1 : value)).unpack1("H*")
  end

  def columns(map)
    map.to_h do |key, value|
      name = key.is_a?(Integer) ? COLUMNS.fetch(key, "column #{key}") : key
      moving = @packed && key.is_a?(Integer) && MOVING.include?(name)
      [name, column(name, value, moving)]
    end
  end

  def column(name, value, moving)
    return @before[name] = moved(name, value) if moving && value.is_a?(Integer)
    return plain(value) unless value.is_a?(Hash)
    return digest(value[1]) if @packed && value.key?(1)
    moving && value.key?(2) ? value[2] : text(value.fetch(0))
  end

  def actor(values)
    own = @own
    shown = {}
    ACTOR.zip(values) { |field, value| shown[field[0]] = one(field, value) unless value.nil? }
    parents = values[ACTOR.size] || []
    shown["parents"] = parents.map { |pid, exe| [moved("ppid", pid), reference(exe, false)] } unless parents.empty?
    @own = own
    shown
  end

  # Bytes of text that are not UTF-8 become visible.
  def text(item)
    item.dup.force_encoding("UTF-8").scrub { |bytes| bytes.bytes.map { |byte| format("\\x%02x", byte) }.join }
  end

  def plain(value)
    case value
    when String then value.encoding == Encoding::BINARY ? value.unpack1("H*") : value
    when Array then value.map { |item| plain(item) }
    when Hash then value.key?(0) ? text(value[0]) : value.to_h { |key, item| [key.to_s, plain(item)] }
    else value
    end
  end
end

identity_hex, epoch_hex, directory, *files = ARGV
identity = [identity_hex].pack("H*")
device = Digest::SHA256.digest(identity)[0, 16]
raw = [epoch_hex].pack("H*")

files.each do |file|
  data = File.binread(file)
  message = CBOR.decode(data)
  refuse "not a COSE_Sign1" unless message.is_a?(CBOR::Tagged) && message.tag == 18
  protected_header, unprotected, payload, signature = message.value
  refuse "unprotected header" unless unprotected == {}
  if file.end_with?(".ege")
    algorithm = identity.bytesize == 32 ? -8 : -7
    refuse "header" unless CBOR.decode(protected_header) == { 1 => algorithm, 4 => Digest::SHA256.digest(identity)[0, 8] }
    verified = verified?(identity, signature, CBOR.encode(["Signature1", protected_header, "EGEPOC1".b, payload]))
    payload = CBOR.decode(payload).value[2] if payload.start_with?("\xd2".b) # announced by the key of the epoch before
    word, _, owner, number, public_key, = CBOR.decode(payload)
    refuse "statement" unless word == "epoch" && owner == device
    puts JSON.generate(verified: verified, number: number, key: public_key.unpack1("H*"))
    next
  end
  refuse "header" unless CBOR.decode(protected_header) == { 1 => -8, 4 => Digest::SHA256.digest(raw)[0, 8] }
  signed = CBOR.encode(["Signature1", protected_header, "EGSEG1".b, payload])
  verified = verified?(raw, signature, signed)

  parts = CBOR.decode(payload)
  stream, seq, count, mono, wall, number, codec, body = parts.values_at(2, 3, 7, 9, 10, 13, 14, 15)
  refuse "device" unless parts[1] == device
  dictionary = number.zero? ? nil : File.binread(File.join(directory, "#{number}.dict"))
  body = inflate(body, dictionary) if codec.odd?
  strings, rows, _, digests = content = CBOR.decode(body)
  refuse "packed" unless (codec >= 2) == (content.size == 4)
  refuse "rows" unless rows.size == count
  reader = Rows.new(strings, digests || "".b, codec >= 2)
  records = rows.map do |row|
    mono += row[0]
    wall += row[0] if wall
    { "stream" => stream, "mono" => mono, "wall" => wall }.merge(reader.record(row, wall))
  end
  refuse "digests are left" unless reader.done?
  puts JSON.generate(verified: verified, stream: stream, seq: seq, dictionary: number, records: records)
end
