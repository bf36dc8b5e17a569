# Reads segments from docs/wire-format.md alone, with Ruby's cbor gem and OpenSSL: no code of ours, and not Python.
#
#   ruby read.rb IDENTITY-KEY-HEX EPOCH-KEY-HEX DICTIONARIES FILE...
#
# One line of JSON for each segment: {"verified": ..., "stream", "seq", "dictionary", "rows": [[type, severity, mono,
# fields]]}, text fields with their strings in place of an index into the table; for each statement (*.ege) {"verified":
# ..., "number", "key"}. An identity key of 33 bytes is of P-256.
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
