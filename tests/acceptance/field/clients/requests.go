// Sends each line of standard input as a request.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	token, err := os.ReadFile("token")
	if err != nil {
		panic(err)
	}
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(make([]byte, 1<<20), 1<<20)
	clean := strings.NewReplacer("\n", " ", "\t", " ")
	for input.Scan() {
		fields := strings.Split(input.Text(), "\t")
		var body io.Reader = strings.NewReader(fields[3])
		if fields[2] == "chunked" {
			// A reader of unknown length is sent in chunks.
			body = io.MultiReader(body)
		}
		request, err := http.NewRequest("POST", os.Args[1]+fields[1], body)
		if err != nil {
			panic(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", "Bearer "+string(token))
		request.Header.Set("X-Request-ID", fields[0])
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			fmt.Printf("%s\t%s\t\n", fields[0], clean.Replace(err.Error()))
			continue
		}
		answer, _ := io.ReadAll(response.Body)
		response.Body.Close()
		fmt.Printf("%s\t%d\t%s\n", fields[0], response.StatusCode, clean.Replace(string(answer)))
	}
}
