package sandbox

import "testing"

func TestCheck(t *testing.T) {
	good := func() Config {
		return Config{ID: "a-1", CodeDir: "/code", Argv: []string{"/var/task/bootstrap"}, MemoryBytes: 128 << 20, CPUMilli: 72, MaxProcesses: 1}
	}
	if c := good(); c.Check() != nil {
		t.Fatal(c.Check())
	}
	for name, spoil := range map[string]func(*Config){
		"no id":           func(c *Config) { c.ID = "" },
		"id climbs":       func(c *Config) { c.ID = ".." },
		"id with slash":   func(c *Config) { c.ID = "a/b" },
		"long id":         func(c *Config) { c.ID = string(make([]byte, 65)) },
		"no program":      func(c *Config) { c.Argv = nil },
		"empty program":   func(c *Config) { c.Argv = []string{""} },
		"zero byte":       func(c *Config) { c.Env = []string{"A=\x00"} },
		"no code":         func(c *Config) { c.CodeDir = "" },
		"relative code":   func(c *Config) { c.CodeDir = "code" },
		"the whole host":  func(c *Config) { c.ReadOnly = []string{"/"} },
		"path climbs":     func(c *Config) { c.OptDir = "/a/../b" },
		"little memory":   func(c *Config) { c.MemoryBytes = 1 },
		"no cpu":          func(c *Config) { c.CPUMilli = 0 },
		"no process":      func(c *Config) { c.MaxProcesses = 0 },
		"negative tmp":    func(c *Config) { c.TmpBytes = -1 },
		"zero in a path":  func(c *Config) { c.CodeDir = "/a\x00b" },
		"capital letters": func(c *Config) { c.ID = "A" },
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			spoil(&c)
			if c.Check() == nil {
				t.Errorf("accepted: %+v", c)
			}
		})
	}
}
