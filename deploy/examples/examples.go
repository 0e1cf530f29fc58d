// Package examples knows the example functions: how each is deployed, the event that ships with it,
// and what it must answer. The demo, the tests and the end-to-end tests read it from here.
//
// The functions themselves are in the folders below. They know nothing of Doze, nor of this package.
package examples

import (
	"bytes"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"reflect"
)

//go:generate sh -c "cd thumbnail && go run ./generate"
//go:generate sh -c "cd report && python3 generate.py"

//go:embed */event.json */expected.json
var files embed.FS

// Example is one example function.
type Example struct {
	// Name is its folder's, and the one it is deployed under.
	Name string
	// Runtime is AWS's name; for python and nodejs any version of the family will do, and this is
	// the family ("python3", "nodejs").
	Runtime string
	// Interpreter is what a worker needs for it, "" for nothing.
	Interpreter string
	Handler     string
	// MemoryMB and TimeoutSeconds are enough for the event that ships with it.
	MemoryMB, TimeoutSeconds int
	// What says in a few words what it does.
	What string
}

// All is every example, the Go one first.
func All() []Example {
	return []Example{
		{Name: "thumbnail", Runtime: "provided.al2023", Handler: "bootstrap", MemoryMB: 128, TimeoutSeconds: 30,
			What: "a thumbnail of a photo, in Go"},
		{Name: "report", Runtime: "python3", Interpreter: "python3", Handler: "report.handler", MemoryMB: 128, TimeoutSeconds: 30,
			What: "a report from a CSV, in Python"},
		{Name: "graphql", Runtime: "nodejs", Interpreter: "node", Handler: "index.handler", MemoryMB: 256, TimeoutSeconds: 30,
			What: "a GraphQL query, in Node.js"},
	}
}

// Event is the JSON that the example is called with.
func (e Example) Event() []byte { return e.file("event.json") }

// Expected is the JSON that it must answer Event with, up to what Check allows.
func (e Example) Expected() []byte { return e.file("expected.json") }

// file is embedded: it is there, or this did not compile.
func (e Example) file(name string) []byte {
	b, err := files.ReadFile(e.Name + "/" + name)
	if err != nil {
		return nil
	}
	return b
}

// Check tells what is wrong with an answer to Event: nil, if it is as expected. Pictures may differ
// by what rounding and the PNG encoder's choices make of them; all else must be the same value.
func (e Example) Check(answer []byte) error {
	var got, want map[string]any
	if err := json.Unmarshal(answer, &got); err != nil {
		return fmt.Errorf("%s: the answer is not a JSON object: %w", e.Name, err)
	}
	if err := json.Unmarshal(e.Expected(), &want); err != nil {
		return fmt.Errorf("%s: expected.json: %w", e.Name, err)
	}
	if picture, ok := want["image"].(string); ok {
		other, _ := got["image"].(string)
		if err := samePicture(other, picture); err != nil {
			return fmt.Errorf("%s: image: %w", e.Name, err)
		}
		delete(got, "image")
		delete(want, "image")
	}
	if !reflect.DeepEqual(got, want) {
		g, _ := json.Marshal(got)
		w, _ := json.Marshal(want)
		return fmt.Errorf("%s answered\n  %s\nnot\n  %s", e.Name, g, w)
	}
	return nil
}

// samePicture compares two base64 PNGs pixel by pixel.
func samePicture(a, b string) error {
	got, err := decode(a)
	if err != nil {
		return err
	}
	want, err := decode(b)
	if err != nil {
		return fmt.Errorf("expected.json: %w", err)
	}
	if got.Bounds() != want.Bounds() {
		return fmt.Errorf("size %v, want %v", got.Bounds(), want.Bounds())
	}
	const tolerance = 3 << 8 // of 65535: three of 255
	for y := range want.Bounds().Dy() {
		for x := range want.Bounds().Dx() {
			r1, g1, b1, a1 := got.At(x, y).RGBA()
			r2, g2, b2, a2 := want.At(x, y).RGBA()
			if apart(r1, r2) > tolerance || apart(g1, g2) > tolerance || apart(b1, b2) > tolerance || apart(a1, a2) > tolerance {
				return fmt.Errorf("pixel (%d, %d) is %v, want %v", x, y, got.At(x, y), want.At(x, y))
			}
		}
	}
	return nil
}

func apart(a, b uint32) uint32 { return max(a, b) - min(a, b) }

func decode(s string) (image.Image, error) {
	if s == "" {
		return nil, errors.New("there is none")
	}
	data, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, err
	}
	return png.Decode(bytes.NewReader(data))
}
