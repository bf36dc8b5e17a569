# Reads segments from docs/wire-format.md alone, with Ruby's cbor gem and OpenSSL: no code of ours, and not Python.
#
#   ruby read.rb IDENTITY-KEY-HEX EPOCH-KEY-HEX DICTIONARIES SEGMENT...
#
# One line of JSON for each: {"verified": ..., "stream", "seq", "dictionary", "rows": [[type, severity, mono, fields]]},
# text fields with their strings in place of an index into the table.
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

def inflate(body, dictionary)
  inflater = Zlib::Inflate.new(-Zlib::MAX_WBITS)
  inflater.set_dictionary(dictionary) if dictionary
  plain = inflater.inflate(body)
  refuse "more than #{INFLATED_MAX} bytes" if plain.bytesize > INFLATED_MAX
  plain
end

# Bytes are text that is not UTF-8; everything becomes something that JSON can hold.
def plain(value)
  case value
  when String then value.encoding == Encoding::BINARY ? value.unpack1("H*") : value
  when Array then value.map { |item| plain(item) }
  when Hash then value.to_h { |key, item| [key.to_s, plain(item)] }
  else value
  end
end

identity_hex, epoch_hex, directory, *files = ARGV
device = Digest::SHA256.digest([identity_hex].pack("H*"))[0, 16]
raw = [epoch_hex].pack("H*")
key = OpenSSL::PKey.read(SPKI + raw)

files.each do |file|
  data = File.binread(file)
  message = CBOR.decode(data)
  refuse "not a COSE_Sign1" unless message.is_a?(CBOR::Tagged) && message.tag == 18
  protected_header, unprotected, payload, signature = message.value
  refuse "header" unless CBOR.decode(protected_header) == { 1 => -8, 4 => Digest::SHA256.digest(raw)[0, 8] }
  refuse "unprotected header" unless unprotected == {}
  signed = CBOR.encode(["Signature1", protected_header, "EGSEG1".b, payload])
  verified = key.verify(nil, signature, signed)

  parts = CBOR.decode(payload)
  stream, seq, count, mono, number, codec, body = parts.values_at(2, 3, 7, 9, 13, 14, 15)
  refuse "device" unless parts[1] == device
  dictionary = number.zero? ? nil : File.binread(File.join(directory, "#{number}.dict"))
  body = inflate(body, dictionary) if codec.odd?
  strings, rows, = content = CBOR.decode(body)
  refuse "packed" unless (codec >= 2) == (content.size == 4)
  refuse "rows" unless rows.size == count
  shown = rows.map do |dt, head, *fields|
    mono += dt
    [head >> 4, head & 7, mono, plain(fields)]
  end
  puts JSON.generate(verified: verified, stream: stream, seq: seq, dictionary: number, strings: plain(strings), rows: shown)
end
