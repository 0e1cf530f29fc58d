package registry

import "strings"

// Bounds of names, in bytes.
const (
	MaxName      = 64
	MaxQualifier = 128
	maxRegion    = 32
	// maxFunctionName bounds what ParseFunctionName looks at: the longest full ARN with a
	// qualifier is below it.
	maxFunctionName = 320
)

// ParseFunctionName takes apart the FunctionName parameter that every operation accepts:
//
//	name                      name:qualifier
//	function:name             function:name:qualifier
//	account:function:name     account:function:name:qualifier
//	arn:aws:lambda:region:account:function:name[:qualifier]
//
// What the form does not say is "". "function:x" is the function x, never the qualifier x of a
// function called "function". The error is ErrName. It does not allocate.
func ParseFunctionName(s string) (account, region, name, qualifier string, err error) {
	var part [8]string
	n := 0
	if len(s) > maxFunctionName {
		return "", "", "", "", ErrName
	}
	for rest, more := s, true; more; n++ {
		if n == len(part) {
			return "", "", "", "", ErrName
		}
		part[n], rest, more = strings.Cut(rest, ":")
	}
	p := part[:n]
	if n >= 7 {
		if p[0] != "arn" || !isPartition(p[1]) || p[2] != "lambda" || !isRegion(p[3]) {
			return "", "", "", "", ErrName
		}
		region = p[3]
		p = p[4:]
		if !isAccount(p[0]) || p[1] != "function" {
			return "", "", "", "", ErrName
		}
	}
	if len(p) >= 3 && p[1] == "function" && isAccount(p[0]) {
		account, p = p[0], p[2:]
	} else if len(p) >= 2 && p[0] == "function" {
		p = p[1:]
	}
	switch {
	case len(p) > 2 || !IsName(p[0]):
		return "", "", "", "", ErrName
	case len(p) == 2:
		if !IsQualifier(p[1]) {
			return "", "", "", "", ErrName
		}
		qualifier = p[1]
	}
	return account, region, p[0], qualifier, nil
}

// ARN is the function's Amazon resource name; without a qualifier when that is "".
func ARN(region, account, name, qualifier string) string {
	arn := "arn:aws:lambda:" + region + ":" + account + ":function:" + name
	if qualifier != "" {
		arn += ":" + qualifier
	}
	return arn
}

// IsName reports whether s can name a function: 1 to MaxName of letters, digits, '-' and '_'.
func IsName(s string) bool { return len(s) <= MaxName && isWord(s) }

// IsQualifier reports whether s is "$LATEST" or has the form of a version number or alias name.
func IsQualifier(s string) bool {
	return s == Latest || len(s) <= MaxQualifier && isWord(s)
}

// IsVersionNumber reports whether s is written as the registry writes version numbers: decimal,
// from 1, no leading zero.
func IsVersionNumber(s string) bool {
	return isDigits(s) && s[0] != '0' && len(s) <= 18
}

func isWord(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return s != ""
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

func isAccount(s string) bool { return len(s) == 12 && isDigits(s) }

func isRegion(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || i > 0 && ('0' <= c && c <= '9' || c == '-')) {
			return false
		}
	}
	return s != "" && len(s) <= maxRegion
}

func isPartition(s string) bool {
	rest, ok := strings.CutPrefix(s, "aws")
	if !ok {
		return false
	}
	for i := range len(rest) {
		c := rest[i]
		if !('a' <= c && c <= 'z' || c == '-') {
			return false
		}
	}
	return len(s) <= maxRegion
}
