#!/bin/sh
# Sends each line of standard input as a request, all by one curl, so that connections are kept.
url=$1
folder=$2
token=$(cat token)
tab=$(printf '\t')
while IFS="$tab" read -r id path framing body; do
    printf '%s' "$body" > "$folder/$id.body"
    [ -s requests ] && echo next >> requests
    {
        echo "url = $url$path"
        echo http2
        echo silent
        echo "noproxy = *"
        echo "max-time = 30"
        echo "data-binary = @$folder/$id.body"
        echo 'header = "Content-Type: application/json"'
        echo "header = \"Authorization: Bearer $token\""
        echo "header = \"X-Request-ID: $id\""
        if [ "$framing" = chunked ]; then echo 'header = "Transfer-Encoding: chunked"'; fi
        echo "output = $folder/$id.answer"
        echo "write-out = \"$id\\\\t%{http_code}\\\\n\""
    } >> requests
done
curl --config requests > statuses
while IFS="$tab" read -r id status; do
    printf '%s\t%s\t%s\n' "$id" "$status" "$(tr '\n\t' '  ' < "$folder/$id.answer")"
done < statuses
