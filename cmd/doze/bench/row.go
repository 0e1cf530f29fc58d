package bench

import (
	"slices"
	"time"
)

// ReportVersion changes when a key or a figure changes its meaning.
const ReportVersion = 1

// Report is the outcome of one run: what --json prints and --out stores.
type Report struct {
	Version int     `json:"version"`
	Machine Machine `json:"machine"`
	// Seconds is how long the whole run took.
	Seconds float64 `json:"seconds"`
	Quick   bool    `json:"quick"`
	// Method says how the figures were taken, for a reader who has only the table.
	Method []string `json:"method"`
	Rows   []Row    `json:"rows"`
}

// Figures are measured values by name. The names and their units are fixed: see figureNames.
type Figures map[string]float64

// Names of figures. The unit is the end of the name; rates are per second.
const (
	P50      = "p50Ms"
	P99      = "p99Ms"
	Rate     = "callsPerSecond"
	OpenRate = "openCallsPerSecond" // the constant arrival rate of the open loop
	OpenP50  = "openP50Ms"          // from the moment a call was due, not from when it was sent
	OpenP99  = "openP99Ms"

	RoundP50 = "roundP50Ms" // one answer of a function to the next, at the Runtime API

	PlatformCPU      = "platformMicros"      // platform process, per call
	FunctionCPU      = "functionMicros"      // all function processes, per call
	LoopCPU          = "loopMicros"          // the floor's bare loop, per call
	FloorFunctionCPU = "floorFunctionMicros" // the floor's function processes, per call
	AboveFloorCPU    = "aboveFloorMicros"    // PlatformCPU less LoopCPU

	AllStarted  = "allStartedMs"  // until the last of the calls was in its handler
	AllAnswered = "allAnsweredMs" // until the last answer, less the time the handler slept
	Instances   = "instances"     // distinct instances that answered

	RSS          = "rssMB"          // resident memory, 1 MB = 1,000,000 bytes
	PSS          = "pssMB"          // resident memory, shared pages divided among their users
	AvailableMem = "availableMB"    // drop of MemAvailable, per instance
	FreedMem     = "freedShare"     // of AvailableMem, given back when the instances have ended, 0 to 1
	FrozenP50    = "frozenP50Ms"    // a call of an instance that was frozen
	AwakeP50     = "awakeP50Ms"     // of one that was not yet
	ThawAdded    = "thawAddedMs"    // the difference
	PoolHits     = "poolHits"       // starts of the row that found a parked sandbox
	PoolMisses   = "poolMisses"     // starts that did not
	GeneratorCPU = "generatorShare" // load generator's part of the machine's CPU time, 0 to 1
)

// Goal is a target of a row: a figure, or its ratio to the same figure of a baseline row.
type Goal struct {
	Figure string `json:"figure"`
	// To is the key of the baseline row, "" for an absolute target.
	To string `json:"to,omitempty"`
	// Op is "<=" or ">=".
	Op    string  `json:"op"`
	Value float64 `json:"value"`
	// Aim is the better value that is hoped for; 0 for none.
	Aim float64 `json:"aim,omitempty"`
}

// Target is a goal held against what was measured.
type Target struct {
	Goal
	Measured float64 `json:"measured"`
	Reached  bool    `json:"reached"`
}

// Ratio is a figure of a row divided by the same figure of its baseline: the median of the ratios
// of the rounds, in each of which both were measured within seconds of one another.
type Ratio struct {
	Figure string  `json:"figure"`
	To     string  `json:"to"`
	Value  float64 `json:"value"`
}

// Row is one line of the table. Keys are fixed: a later run can be compared with an earlier one.
type Row struct {
	Key   string `json:"key"`
	Title string `json:"title"`
	// Baseline is set on the rows that others are held against.
	Baseline bool   `json:"baseline,omitempty"`
	Runtime  string `json:"runtime,omitempty"`
	// Handler says what the function does.
	Handler string `json:"handler,omitempty"`
	// MemorySize is the function's, in MB as AWS counts them; 0 where no function of the platform runs.
	MemorySize  int      `json:"memorySize,omitempty"`
	Connections int      `json:"connections,omitempty"`
	Rounds      int      `json:"rounds"`
	Calls       int64    `json:"calls,omitempty"`
	Errors      int64    `json:"errors,omitempty"`
	FirstError  string   `json:"firstError,omitempty"`
	Figures     Figures  `json:"figures,omitempty"`
	Ratios      []Ratio  `json:"ratios,omitempty"`
	Targets     []Target `json:"targets,omitempty"`
	// Reached is true when every target is and no call failed; absent for a row without targets or
	// not measured.
	Reached *bool `json:"reached,omitempty"`
	// NotMeasured is the reason why a row has no figures.
	NotMeasured string `json:"notMeasured,omitempty"`
	Note        string `json:"note,omitempty"`

	goals  []Goal
	ratios []Ratio // Value unused: which ratios to show
}

// Languages are the three runtimes that are measured, in the order of the table.
var languages = []string{"python", "node", "go"}

const (
	memorySize   = 128
	echoHandler  = "echo"
	sleepHandler = "sleep 100 ms"
	waitHandler  = "sleep 3 s"

	sleepTime = 100 * time.Millisecond
	waitTime  = 3 * time.Second
	// crowd is how many calls come at once in scale.0to100.
	crowd = 100
	// floorProcesses is how many plain processes the wide floor has.
	floorProcesses = 8
)

// catalog is every row there is, in the order of the table.
func catalog() []Row {
	rows := []Row{
		{Key: "ready.time", Title: "doze dev from exec to its ready line",
			goals: []Goal{{Figure: P50, Op: "<=", Value: 1000}}},
		{Key: "idle.platform.rss", Title: "memory of the platform ten seconds after ready, no functions",
			goals: []Goal{{Figure: RSS, Op: "<=", Value: 100}}},
	}
	for _, c := range []int{1, 16, 64} {
		rows = append(rows, Row{Key: key("echo", conns(c)), Baseline: true, Handler: echoHandler, Connections: c,
			Title: "plain net/http echo server"})
	}
	for _, l := range languages {
		rows = append(rows,
			Row{Key: key("floor", l, "p1"), Baseline: true, Handler: echoHandler,
				Title: "Runtime API floor: one plain process, bare loop"},
			Row{Key: key("floor", l, "p8"), Baseline: true, Handler: echoHandler,
				Title: "Runtime API floor: eight plain processes, bare loop"})
	}
	rows = append(rows, Row{Key: "floor.go.p8.maxprocs1", Baseline: true, Handler: echoHandler,
		Title: "the same with GOMAXPROCS=1, which the platform sets below 1769 MB"})
	for _, l := range languages {
		for _, c := range []int{1, 16, 64} {
			echo, floor := key("echo", conns(c)), key("floor", l, "p8")
			r := Row{Key: key("warm", l, conns(c)), Handler: echoHandler, MemorySize: memorySize, Connections: c,
				Title:  "warm call",
				ratios: []Ratio{{Figure: P50, To: echo}, {Figure: P99, To: echo}, {Figure: Rate, To: echo}}}
			switch {
			case c == 1 && l == "go":
				r.goals = []Goal{{Figure: P50, To: echo, Op: "<=", Value: 8}}
			case c == 1:
				r.goals = []Goal{{Figure: P50, To: echo, Op: "<=", Value: 5}}
			case c == 64:
				r.ratios = append(r.ratios, Ratio{Figure: Rate, To: floor})
				r.goals = []Goal{{Figure: Rate, To: echo, Op: ">=", Value: 0.15, Aim: 0.25}}
				if l == "go" {
					r.goals = []Goal{{Figure: Rate, To: floor, Op: ">=", Value: 0.6}}
				}
			}
			rows = append(rows, r)
		}
	}
	for _, l := range languages {
		rows = append(rows, Row{Key: key("cpu.platform", l), Handler: echoHandler, MemorySize: memorySize, Connections: 64,
			Title: "CPU time per call, from warm." + l + ".c64 and floor." + l + ".p8",
			goals: []Goal{{Figure: AboveFloorCPU, Op: "<=", Value: 120, Aim: 70}}})
	}
	rows = append(rows, Row{Key: "echo.sleep100.c64", Baseline: true, Handler: sleepHandler, Connections: 64,
		Title: "plain net/http server that sleeps"})
	for _, l := range languages {
		rows = append(rows, Row{Key: key("sleep100", l, "c64"), Handler: sleepHandler, MemorySize: memorySize, Connections: 64,
			Title:  "warm call of a handler that sleeps",
			ratios: []Ratio{{Figure: P99, To: "echo.sleep100.c64"}, {Figure: Rate, To: "echo.sleep100.c64"}},
			goals:  []Goal{{Figure: Rate, Op: ">=", Value: 600}, {Figure: P99, Op: "<=", Value: 115}}})
	}
	for _, l := range languages {
		parked, unparked := coldGoals(l)
		rows = append(rows,
			Row{Key: key("floor.start", l), Baseline: true, Handler: echoHandler, Connections: 1,
				Title: "plain process from spawn to its first answer"},
			Row{Key: key("cold", l), Handler: echoHandler, MemorySize: memorySize, Connections: 1,
				Title:  "first call of a sleeping function, package known to the worker: parked sandboxes, page cache warm",
				ratios: []Ratio{{Figure: P50, To: key("floor.start", l)}},
				goals:  parked},
			Row{Key: key("cold.nocache", l), Handler: echoHandler, MemorySize: memorySize, Connections: 1,
				Title: "the same, page cache dropped before each call"},
			Row{Key: key("cold.unparked", l), Handler: echoHandler, MemorySize: memorySize, Connections: 1,
				Title: "first call with --parked=false, page cache warm",
				goals: unparked},
			Row{Key: key("cold.unparked.nocache", l), Handler: echoHandler, MemorySize: memorySize, Connections: 1,
				Title: "first call with --parked=false, page cache dropped before each call"},
			Row{Key: key("first", l), Handler: echoHandler, MemorySize: memorySize, Connections: 1,
				Title:  "first call after deploy, package new: fetched, verified and unpacked in the call",
				ratios: []Ratio{{Figure: P50, To: key("floor.start", l)}}})
	}
	rows = append(rows, Row{Key: "coldrate.go", Handler: echoHandler, MemorySize: memorySize, Connections: rateCallers,
		Title: "cold starts a second, sustained: every instance ends after its call",
		goals: []Goal{{Figure: Rate, Op: ">=", Value: 200, Aim: 400}}})
	for _, l := range languages {
		rows = append(rows, Row{Key: key("thaw", l), Handler: echoHandler, MemorySize: memorySize, Connections: 1,
			Title: "what thawing adds to a warm call: after 16 ms of rest, held against 5 ms",
			goals: []Goal{{Figure: ThawAdded, Op: "<=", Value: 0.2}}})
	}
	for _, l := range languages {
		rows = append(rows,
			Row{Key: key("floor.start100", l), Baseline: true, Handler: echoHandler, Connections: crowd,
				Title: "100 plain processes spawned at once, until all have answered"},
			Row{Key: key("scale.0to100", l), Handler: waitHandler, MemorySize: memorySize, Connections: crowd,
				Title:  "100 calls at once to a sleeping function",
				ratios: []Ratio{{Figure: AllAnswered, To: key("floor.start100", l)}},
				goals:  map[string][]Goal{"go": {{Figure: AllStarted, Op: "<=", Value: 500}}, "python": {{Figure: AllStarted, Op: "<=", Value: 3000}}}[l]})
	}
	for _, l := range languages {
		rows = append(rows,
			Row{Key: key("floor.memory", l), Baseline: true, Handler: echoHandler, Connections: crowd,
				Title: "memory of one of 100 idle plain processes"},
			Row{Key: key("idle.instance.memory", l), Handler: waitHandler, MemorySize: memorySize, Connections: crowd,
				Title:  "memory of one of 100 idle instances",
				ratios: []Ratio{{Figure: PSS, To: key("floor.memory", l)}, {Figure: AvailableMem, To: key("floor.memory", l)}}})
	}
	for _, c := range idleCrowds {
		rows = append(rows, Row{Key: key("idle1000", c.language), Handler: "sleep 1-2 s", MemorySize: memorySize, Connections: idleCrowd,
			Title: "1,000 idle instances at once (fewer in a quick run), and their end",
			goals: []Goal{{Figure: AvailableMem, Op: "<=", Value: c.megabytes}, {Figure: FreedMem, Op: ">=", Value: 0.95}}})
	}
	for i := range rows {
		if rows[i].MemorySize != 0 || rows[i].Baseline {
			rows[i].Runtime = languageOf(rows[i].Key)
		}
	}
	return rows
}

// coldGoals are what the first call of a sleeping function is to reach, with parked sandboxes and without.
func coldGoals(language string) (parked, unparked []Goal) {
	limits := map[string]struct{ p50, aim50, p99, aim99, unparked float64 }{
		"go": {5, 3, 15, 8, 7}, "python": {5, 3, 20, 12, 20}, "node": {7, 5, 25, 20, 35},
	}[language]
	return []Goal{{Figure: P50, Op: "<=", Value: limits.p50, Aim: limits.aim50}, {Figure: P99, Op: "<=", Value: limits.p99, Aim: limits.aim99}},
		[]Goal{{Figure: P50, Op: "<=", Value: limits.unparked}}
}

// languageOf is the language a row's key names, or "".
func languageOf(k string) string {
	for _, part := range splitKey(k) {
		if slices.Contains(languages, part) {
			return part
		}
	}
	return ""
}
