package bench

import (
	"fmt"
	"os"
)

// dropCaches empties the page cache of the machine. What running programs have mapped stays.
func dropCaches() error {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1\n"), 0); err != nil {
		return fmt.Errorf("the page cache cannot be dropped, which needs root: %w", err)
	}
	return nil
}
