package gateway

import (
	"unicode/utf16"
	"unicode/utf8"
)

// malformed says where the text stops being JSON.
func (d *decoder) malformed(what string) error {
	return faultf(codeSerialization, "Could not parse request body into json: %s at offset %d", what, d.at)
}

// space moves past white space.
func (d *decoder) space() {
	for d.at < len(d.in) {
		switch d.in[d.at] {
		case ' ', '\t', '\n', '\r':
			d.at++
		default:
			return
		}
	}
}

// literal takes word if it stands at the cursor.
func (d *decoder) literal(word string) bool {
	if len(d.in)-d.at < len(word) || string(d.in[d.at:d.at+len(word)]) != word {
		return false
	}
	d.at += len(word)
	return true
}

// null takes a null if one stands at the cursor.
func (d *decoder) null() bool { return d.literal("null") }

// enter counts a value and one level of nesting; the caller leaves with depth--.
func (d *decoder) enter() error {
	d.depth++
	if d.depth > maxJSONDepth {
		return d.malformed("nested too deeply")
	}
	return d.count()
}

// count counts a value against the bound.
func (d *decoder) count() error {
	d.values++
	if d.values > maxJSONValues {
		return d.malformed("too many values")
	}
	return nil
}

// object walks an object's members; each must consume the value.
func (d *decoder) object(each func(key string) error) error {
	if err := d.enter(); err != nil {
		return err
	}
	d.at++ // {
	d.space()
	if d.literal("}") {
		d.depth--
		return nil
	}
	for {
		d.space()
		if d.at >= len(d.in) || d.in[d.at] != '"' {
			return d.malformed("expected a member name")
		}
		key, err := d.str()
		if err != nil {
			return err
		}
		d.space()
		if !d.literal(":") {
			return d.malformed("expected ':'")
		}
		d.space()
		if err := d.count(); err != nil {
			return err
		}
		if err := each(key); err != nil {
			return err
		}
		d.space()
		switch {
		case d.literal(","):
		case d.literal("}"):
			d.depth--
			return nil
		default:
			return d.malformed("expected ',' or '}'")
		}
	}
}

// array walks a list's entries; each must consume the value.
func (d *decoder) array(each func() error) error {
	if err := d.enter(); err != nil {
		return err
	}
	d.at++ // [
	d.space()
	if d.literal("]") {
		d.depth--
		return nil
	}
	for {
		d.space()
		if err := d.count(); err != nil {
			return err
		}
		if err := each(); err != nil {
			return err
		}
		d.space()
		switch {
		case d.literal(","):
		case d.literal("]"):
			d.depth--
			return nil
		default:
			return d.malformed("expected ',' or ']'")
		}
	}
}

// number takes a JSON number; whole is false when it has a fraction or an exponent.
func (d *decoder) number() (whole bool, err error) {
	digits := func() bool {
		start := d.at
		for d.at < len(d.in) && d.in[d.at] >= '0' && d.in[d.at] <= '9' {
			d.at++
		}
		return d.at > start
	}
	d.literal("-")
	if d.literal("0") {
		if d.at < len(d.in) && d.in[d.at] >= '0' && d.in[d.at] <= '9' {
			return false, d.malformed("a number with a leading zero")
		}
	} else if !digits() {
		return false, d.malformed("expected a digit")
	}
	whole = true
	if d.literal(".") {
		whole = false
		if !digits() {
			return false, d.malformed("expected a digit")
		}
	}
	if d.literal("e") || d.literal("E") {
		whole = false
		if !d.literal("+") {
			d.literal("-")
		}
		if !digits() {
			return false, d.malformed("expected a digit")
		}
	}
	return whole, nil
}

// raw finds the end of the string at the cursor and moves past it. The answer is what stands
// between the quotes; plain is false when that has escapes.
func (d *decoder) raw() (text []byte, plain bool, err error) {
	plain = true
	for i := d.at + 1; i < len(d.in); i++ {
		switch c := d.in[i]; {
		case c == '"':
			text = d.in[d.at+1 : i]
			d.at = i + 1
			return text, plain, nil
		case c == '\\':
			plain = false
			i++
		case c < 0x20:
			d.at = i
			return nil, false, d.malformed("control character in a string")
		}
	}
	d.at = len(d.in)
	return nil, false, d.malformed("string without end")
}

// str takes a string. It must be UTF-8, since protobuf strings are.
func (d *decoder) str() (string, error) {
	start := d.at
	text, plain, err := d.raw()
	if err != nil {
		return "", err
	}
	if !utf8.Valid(text) {
		d.at = start
		return "", d.malformed("invalid UTF-8 in a string")
	}
	if plain {
		return string(text), nil
	}
	out, ok := unescape(text)
	if !ok {
		d.at = start
		return "", d.malformed("bad escape in a string")
	}
	return string(out), nil
}

// unescape resolves a string's escapes; a lone surrogate becomes U+FFFD.
func unescape(text []byte) ([]byte, bool) {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		if text[i] != '\\' {
			out = append(out, text[i])
			i++
			continue
		}
		if i+1 >= len(text) {
			return nil, false
		}
		i += 2
		switch c := text[i-1]; c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, ok := hex4(text[i:])
			if !ok {
				return nil, false
			}
			i += 4
			if utf16.IsSurrogate(r) {
				second := rune(utf8.RuneError)
				if len(text) >= i+6 && text[i] == '\\' && text[i+1] == 'u' {
					if low, ok := hex4(text[i+2:]); ok {
						second = low
					}
				}
				if r = utf16.DecodeRune(r, second); r != utf8.RuneError {
					i += 6
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			return nil, false
		}
	}
	return out, true
}

// hex4 reads the four digits of a \u escape.
func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		r <<= 4
		switch {
		case c >= '0' && c <= '9':
			r |= rune(c - '0')
		case c >= 'a' && c <= 'f':
			r |= rune(c-'a') + 10
		case c >= 'A' && c <= 'F':
			r |= rune(c-'A') + 10
		default:
			return 0, false
		}
	}
	return r, true
}

// skip takes any value and forgets it, but holds it to JSON's grammar and the bounds.
func (d *decoder) skip() error {
	if d.at >= len(d.in) {
		return d.malformed("unexpected end")
	}
	switch c := d.in[d.at]; {
	case c == '{':
		return d.object(func(string) error { return d.skip() })
	case c == '[':
		return d.array(d.skip)
	case c == '"':
		_, err := d.str()
		return err
	case c == '-' || c >= '0' && c <= '9':
		_, err := d.number()
		return err
	case d.literal("true"), d.literal("false"), d.null():
		return nil
	}
	return d.malformed("unexpected character")
}
