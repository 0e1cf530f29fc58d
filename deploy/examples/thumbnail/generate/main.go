// Generate writes the input of the example: photo.jpg, a mountain lake at dusk, and event.json, which
// carries it. `go generate ./deploy/examples/...` runs it; what it writes is committed.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"math"
	"os"
)

const width, height = 960, 640

func main() {
	if err := write(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write() error {
	var photo bytes.Buffer
	if err := jpeg.Encode(&photo, paint(), &jpeg.Options{Quality: 82}); err != nil {
		return err
	}
	event, err := json.Marshal(map[string]any{"image": photo.Bytes(), "width": 160, "height": 160})
	if err != nil {
		return err
	}
	if err := os.WriteFile("photo.jpg", photo.Bytes(), 0o644); err != nil {
		return err
	}
	return os.WriteFile("event.json", append(event, '\n'), 0o644)
}

// paint draws the scene: sky with a sun, three ridges, and their reflection in water.
func paint() image.Image {
	m := image.NewRGBA(image.Rect(0, 0, width, height))
	const horizon = height * 5 / 8
	for y := range height {
		for x := range width {
			sy, wave := float64(y), 0.0
			if y > horizon {
				depth := float64(y - horizon)
				wave = math.Sin(depth*0.55+math.Sin(float64(x)*0.012)*3) * (1 + depth*0.03)
				sy = horizon - depth*1.3 + wave
			}
			c := scene(float64(x)+wave*1.5, sy)
			if y > horizon {
				c = mix(c, [3]float64{18, 38, 66}, 0.35)
			}
			m.SetRGBA(x, y, color.RGBA{channel(c[0]), channel(c[1]), channel(c[2]), 255})
		}
	}
	return m
}

// scene is the colour above the water line.
func scene(x, y float64) [3]float64 {
	t := math.Max(0, math.Min(1, y/400))
	c := mix([3]float64{44, 62, 120}, [3]float64{250, 176, 110}, t*t)
	if d := math.Hypot(x-640, y-290); d < 220 {
		c = mix(c, [3]float64{255, 236, 190}, math.Pow(1-d/220, 2))
	}
	for _, r := range []struct {
		base, size, rough float64
		shade             [3]float64
	}{
		{250, 90, 0.9, [3]float64{120, 104, 140}},
		{310, 70, 1.7, [3]float64{72, 70, 104}},
		{365, 40, 3.1, [3]float64{30, 40, 58}},
	} {
		top := r.base
		for octave := 1.0; octave < 40; octave *= 2 {
			top -= r.size / octave * math.Sin(x*0.006*octave*r.rough+octave*1.7+r.base)
		}
		if y > top {
			c = mix(r.shade, c, math.Max(0, 0.5-(y-top)/120))
		}
	}
	return c
}

func mix(a, b [3]float64, t float64) [3]float64 {
	for i := range a {
		a[i] += (b[i] - a[i]) * t
	}
	return a
}

func channel(v float64) uint8 { return uint8(math.Max(0, math.Min(255, v))) }
